//! Kernels on a GPU.

use super::{Launch, Launcher, Word};
use crate::error::{Error, Result};
use candle_core::DType;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};
use half::bf16;

/// All kernels, compiled by `build.rs`.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// A GPU.
pub(super) struct Cuda {
    device: CudaDevice,
}

impl Cuda {
    /// The kernels of a GPU; they are loaded when the first of them runs. None for one that they are not compiled for.
    pub fn new(device: &CudaDevice) -> Option<Self> {
        let (major, _) = device.cuda_stream().context().compute_capability().ok()?;
        (major >= 8).then(|| Cuda { device: device.clone() })
    }
}

impl Launcher for Cuda {
    fn launch(&self, launch: &Launch) -> Result<()> {
        // A function is looked up in the context of the calling thread, which may have none yet.
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(|e| failed(launch, &e))?;
        let function = self.device.get_or_load_custom_func(launch.kernel, "sluice", PTX)?;
        if launch.shared > 48 << 10 {
            use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(launch.shared).unwrap_or(i32::MAX);
            function.set_attribute(most, bytes).map_err(|e| failed(launch, &e))?;
        }
        let mut builder = function.builder();
        for word in launch.arguments {
            match word {
                Word::Pointer(x) => builder.arg(x),
                Word::Number(x) => builder.arg(x),
                Word::Real(x) => builder.arg(x),
            };
        }
        let config = LaunchConfig {
            grid_dim: (launch.grid.0, launch.grid.1, 1),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared,
        };
        // SAFETY: the operations of this module hand over what their kernels declare: pointers to tensors that are alive
        // (their memory is freed in the order of the stream, after the kernel) and as large as the numbers beside say.
        unsafe { builder.launch(config) }.map_err(|e| failed(launch, &e))?;
        Ok(())
    }
}

fn failed(launch: &Launch, error: &impl std::fmt::Display) -> Error {
    Error::Candle(candle_core::Error::Msg(format!("kernel {}: {error}", launch.kernel)))
}

/// Where the numbers from `first` on are.
pub(super) fn address(storage: &CudaStorage, first: usize) -> Result<u64> {
    let stream = storage.device().cuda_stream();
    let (start, size) = match &storage.slice {
        CudaStorageSlice::F32(data) => (data.device_ptr(&stream).0, 4),
        CudaStorageSlice::U32(data) => (data.device_ptr(&stream).0, 4),
        CudaStorageSlice::BF16(data) => (data.device_ptr(&stream).0, 2),
        _ => return Err(Error::shape("a kernel's tensor", "f32, bf16 or u32", "another type")),
    };
    Ok(start + (first * size) as u64)
}

/// Memory of `n` numbers, on the GPU of `like`, that a kernel writes next.
pub(super) fn unwritten(like: &CudaStorage, n: usize, dtype: DType) -> candle_core::Result<CudaStorage> {
    let device = like.device().clone();
    // SAFETY: `result_of` hands it out to be written as a whole before anything reads it.
    let slice = unsafe {
        match dtype {
            DType::F32 => CudaStorageSlice::F32(device.alloc::<f32>(n)?),
            DType::BF16 => CudaStorageSlice::BF16(device.alloc::<bf16>(n)?),
            other => candle_core::bail!("no kernel gives {}", other.as_str()),
        }
    };
    Ok(CudaStorage { slice, device })
}
