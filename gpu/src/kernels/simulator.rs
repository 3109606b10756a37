//! Where tests run kernels: on the GPU that SLUICE_DEVICE names, else in the simulator, which is the kernels compiled for
//! the CPU by the C++ compiler. See `gpu/kernels/simulator.h`.

use super::{Kernels, Launch, Launcher, Word};
use crate::error::{Error, Result};
use candle_core::Device;
use std::ffi::{CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Resolve all symbols at once.
const NOW: c_int = 2;

type Simulate = unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void, u32) -> c_int;

struct Simulator {
    /// One kernel at a time: a block's state is global there.
    simulate: Mutex<Simulate>,
    launches: AtomicU32,
}

/// The device that SLUICE_DEVICE (`cpu`) names, opened once.
pub(crate) fn device() -> Device {
    static OPENED: OnceLock<Device> = OnceLock::new();
    let name = || std::env::var("SLUICE_DEVICE").unwrap_or_else(|_| "cpu".into());
    OPENED.get_or_init(|| crate::device::device(&name()).unwrap()).clone()
}

/// Its kernels, simulated on the CPU; `None`, said on standard error, where there is no C++ compiler.
pub(crate) fn kernels() -> Option<Kernels> {
    static BUILT: OnceLock<Option<Kernels>> = OnceLock::new();
    match device().is_cpu() {
        true => BUILT.get_or_init(build).clone(),
        false => Kernels::of(&device()),
    }
}

fn build() -> Option<Kernels> {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("kernels.so");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let output = Command::new(&compiler)
        .args([
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-DSLUICE_SIMULATOR",
            "-x",
            "c++",
            "-o",
        ])
        .arg(&library)
        .arg(sources.join("all.cu"))
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            let skipped = format!("skipped: the kernels were not simulated, {compiler} does not start: {error}\n");
            std::io::Write::write_all(&mut std::io::stderr(), skipped.as_bytes()).unwrap();
            return None;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = CString::new(library.as_os_str().as_bytes()).unwrap();
    // SAFETY: the library was built just now and stays loaded; `simulate` is what simulator.h declares.
    let simulate = unsafe {
        let library = dlopen(path.as_ptr(), NOW);
        assert!(!library.is_null(), "the simulator cannot be loaded");
        let found = dlsym(library, c"simulate".as_ptr());
        assert!(!found.is_null(), "the simulator has no entry");
        std::mem::transmute::<*mut c_void, Simulate>(found)
    };
    let simulator = Simulator {
        simulate: Mutex::new(simulate),
        launches: AtomicU32::new(0),
    };
    Some(Kernels::new(Arc::new(simulator), &Device::Cpu))
}

impl Launcher for Simulator {
    fn launch(&self, launch: &Launch) -> Result<()> {
        let name = CString::new(launch.kernel).unwrap();
        let mut words: Vec<Word> = launch.arguments.to_vec();
        let mut pointers: Vec<*mut c_void> = words
            .iter_mut()
            .map(|word| match word {
                Word::Pointer(x) => std::ptr::from_mut(x).cast(),
                Word::Number(x) => std::ptr::from_mut(x).cast(),
                Word::Real(x) => std::ptr::from_mut(x).cast(),
            })
            .collect();
        let grid = [launch.grid.0, launch.grid.1, 1];
        // Threads run forwards, backwards and shuffled in turn.
        let order = self.launches.fetch_add(1, Ordering::Relaxed) % 3;
        let simulate = self.simulate.lock().unwrap();
        // SAFETY: the pointers are to what the kernel declares, as on a GPU.
        let code = unsafe {
            simulate(
                name.as_ptr(),
                grid.as_ptr(),
                launch.threads,
                launch.shared,
                pointers.as_mut_ptr(),
                order,
            )
        };
        match code {
            0 => Ok(()),
            1 => Err(Error::shape("a kernel", "one of gpu/kernels", launch.kernel)),
            _ => Err(Error::InvalidData(format!(
                "{}: threads wait for others that never come",
                launch.kernel
            ))),
        }
    }
}
