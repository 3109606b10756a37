//! Device names: `cpu`, `cuda`, `cuda:1`, `auto`; and which GPU one is and what memory it has.

use crate::error::{Error, Result};
use candle_core::{Device, DeviceLocation};

/// The device a name stands for.
///
/// `auto` takes the first GPU if this build and this machine have one, else the CPU.
///
/// # Errors
/// [`Error::Device`] for an unknown name or a GPU that cannot be opened.
pub fn device(name: &str) -> Result<Device> {
    let unavailable = |reason: String| Error::Device {
        requested: name.into(),
        reason,
    };
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "auto" => Ok(open(0).unwrap_or(Device::Cpu)),
        None if name == "cuda" => open(0).map_err(unavailable),
        Some(("cuda", index)) => match index.parse() {
            Ok(index) => open(index).map_err(unavailable),
            Err(_) => Err(unavailable(format!("`{index}` is not a device number"))),
        },
        _ => Err(unavailable("known are cpu, cuda, cuda:N and auto".into())),
    }
}

fn open(index: usize) -> std::result::Result<Device, String> {
    if !candle_core::utils::cuda_is_available() {
        return Err("this build has no CUDA support (feature `cuda`)".into());
    }
    // What follows the first line is a trace of candle's.
    let told = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_string();
    // One stream for all threads: what one of them launches comes after what another launched before.
    let device = Device::new_cuda_with_stream(index).map_err(told)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        // SAFETY: nothing of this device runs on another stream, and no tensor of it exists yet.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

/// Which device it is: `cpu`, or the number and the model of a GPU.
pub fn description(device: &Device) -> String {
    let name = match device.location() {
        DeviceLocation::Cpu => "cpu".to_string(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    };
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => match cuda.cuda_stream().context().name() {
            Ok(model) => format!("{name} ({model})"),
            Err(_) => name,
        },
        _ => name,
    }
}

/// Bytes of memory that a GPU has free; `None` for the CPU.
pub fn free_memory(device: &Device) -> Option<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let told = cuda.cuda_stream().context().mem_get_info();
            told.ok().map(|(free, _)| free)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(device("cpu").unwrap().is_cpu());
        assert!(device("auto").is_ok());
        assert_eq!(free_memory(&Device::Cpu), None);
        assert_eq!(description(&Device::Cpu), "cpu");
        for bad in ["gpu", "cuda:x", "cpu:0", ""] {
            let text = device(bad).unwrap_err().to_string();
            assert!(text.starts_with(&format!("device `{bad}` is not available")));
        }
    }
}
