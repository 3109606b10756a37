//! Kernels of our own for GPUs: what candle has no operation for, or many where one does.
//!
//! Their sources are in `gpu/kernels`, in CUDA C++. An operation here says which kernel runs, over which grid, on which
//! tensors; where it runs is a [`Launcher`]'s matter: a GPU (feature `cuda`), or the simulator of the tests, which
//! compiles the same sources for the CPU. So all but the launch itself is tested where there is no GPU.

mod adam;
mod adapt;
mod assign;
mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod dropout;
mod elementwise;
mod heads;
mod loss;
mod norm;
mod search;
#[cfg(test)]
pub(crate) mod simulator;
mod sums;
#[cfg(test)]
mod tests;

pub(crate) use attention::WIDEST as WIDEST_HEAD;
pub(crate) use heads::Places;
pub(crate) use loss::LOGITS;
pub(crate) use search::Among;

use crate::error::{Error, Result};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, InplaceOp1, Layout, Shape, Storage, Tensor,
};
use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

type CandleResult<T> = candle_core::Result<T>;

/// One run of a kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Its name.
    pub kernel: &'a str,
    /// Blocks in both directions.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Bytes that the threads of a block share.
    pub shared: u32,
    /// Its arguments.
    pub arguments: &'a [Word],
}

/// An argument of a kernel as it is handed over.
#[derive(Debug, Clone, Copy)]
pub enum Word {
    /// An address on the device.
    Pointer(u64),
    /// A whole number.
    Number(u32),
    /// A number.
    Real(f32),
}

/// Where kernels run.
pub trait Launcher: Send + Sync {
    /// Runs a kernel, at once or after what was launched before.
    ///
    /// # Errors
    /// An unknown kernel, or one of the device.
    fn launch(&self, launch: &Launch) -> Result<()>;
}

/// The kernels of one device.
#[derive(Clone)]
pub struct Kernels {
    launcher: Arc<dyn Launcher>,
    device: Device,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// The numbers of a tensor, from its first on. Its last dimension is dense; the kernel knows its rows' distance.
    Read(&'a Tensor),
    /// The same, to be written.
    Write(&'a Tensor),
    /// No tensor: a null pointer.
    Absent,
    /// A whole number.
    Number(usize),
    /// A number.
    Real(f32),
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernels")
    }
}

impl Kernels {
    /// Kernels that a launcher runs, on tensors of a device.
    pub fn new(launcher: Arc<dyn Launcher>, device: &Device) -> Self {
        Kernels {
            launcher,
            device: device.clone(),
        }
    }

    /// Those of a device: there are some for GPUs of compute capability 8.0 and above, where this build has them.
    pub fn of(device: &Device) -> Option<Self> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => Some(Kernels::new(Arc::new(cuda::Cuda::new(gpu)?), device)),
            _ => None,
        }
    }

    /// The device.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a kernel of `grid` blocks of so many threads, which share so many bytes.
    pub(crate) fn run(
        &self,
        kernel: &str,
        grid: (usize, usize),
        threads: usize,
        shared: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let words: Result<Vec<Word>> = arguments.iter().map(word).collect();
        self.launcher.launch(&Launch {
            kernel,
            grid: (number(grid.0)?, number(grid.1)?),
            threads: number(threads)?,
            shared: number(shared)?,
            arguments: &words?,
        })
    }
}

/// The name of a kernel for numbers of this type.
pub(crate) fn of_type(kernel: &str, dtype: DType) -> Result<String> {
    match dtype {
        DType::F32 => Ok(format!("{kernel}_f32")),
        DType::BF16 => Ok(format!("{kernel}_bf16")),
        other => Err(Error::shape(kernel, "f32 or bf16", other.as_str())),
    }
}

/// The name of a kernel for numbers of these types.
pub(crate) fn of_types(kernel: &str, first: DType, second: DType) -> Result<String> {
    of_type(&of_type(kernel, first)?, second)
}

/// Threads of a block, unless a kernel has reason for more or fewer.
const THREADS: usize = 256;
/// Lanes of a warp.
const WARP: usize = 32;
/// Most blocks where every one leaves a share of a sum: enough to keep a GPU busy.
const SHARES: usize = 512;

/// Blocks for a kernel over `n` elements, of which a thread takes some.
fn blocks(n: usize) -> (usize, usize) {
    (n.div_ceil(4 * THREADS), 1)
}

fn number(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::shape("a kernel's number", "one of 32 bits", n))
}

fn word(argument: &Argument) -> Result<Word> {
    Ok(match *argument {
        Argument::Read(tensor) => Word::Pointer(address(tensor)?),
        Argument::Write(tensor) => {
            let found = Address(Cell::new(0));
            tensor.inplace_op1(&found)?;
            Word::Pointer(found.0.get())
        }
        Argument::Absent => Word::Pointer(0),
        Argument::Number(n) => Word::Number(number(n)?),
        Argument::Real(x) => Word::Real(x),
    })
}

/// Where the numbers of a tensor begin.
fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    if layout.dims().last().is_some_and(|n| *n > 1) && layout.stride().last() != Some(&1) {
        return Err(Error::shape(
            "a kernel's tensor",
            "dense rows",
            format!("{:?}", layout.stride()),
        ));
    }
    let first = layout.start_offset();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => Ok(data[first..].as_ptr() as u64),
        Storage::Cpu(CpuStorage::BF16(data)) => Ok(data[first..].as_ptr() as u64),
        Storage::Cpu(CpuStorage::U32(data)) => Ok(data[first..].as_ptr() as u64),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => cuda::address(storage, first),
        _ => Err(Error::shape(
            "a kernel's tensor",
            "f32, bf16 or u32",
            tensor.dtype().as_str(),
        )),
    }
}

/// Asks a tensor that is to be written where its numbers begin.
struct Address(Cell<u64>);

impl InplaceOp1 for Address {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        let first = layout.start_offset();
        self.0.set(match storage {
            CpuStorage::F32(data) => data[first..].as_mut_ptr() as u64,
            CpuStorage::BF16(data) => data[first..].as_mut_ptr() as u64,
            CpuStorage::U32(data) => data[first..].as_mut_ptr() as u64,
            _ => candle_core::bail!("a kernel writes f32, bf16 and u32 only"),
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> CandleResult<()> {
        let address = cuda::address(storage, layout.start_offset()).map_err(candle_core::Error::wrap)?;
        self.0.set(address);
        Ok(())
    }
}

/// The gradients of the inputs of an operation, of (inputs, result, gradient of the result). The gradient is dense.
type Backward = dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync;

/// Memory on the device of `like` that a kernel writes next; no part of candle's graph.
fn unwritten(like: &Tensor, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let made = Made {
        name: "unwritten",
        shape: shape.into(),
        dtype,
        backward: Box::new(|_, _, _| Ok(vec![None])),
    };
    Ok(like.apply_op1_no_bwd(&made)?)
}

/// Row-major numbers and no part of candle's graph.
fn plain(x: &Tensor) -> Result<Tensor> {
    Ok(x.detach().contiguous()?)
}

/// A result of inputs in candle's graph, not written yet: a kernel does that next. `backward` gives the gradients of
/// the inputs in their order; one that [`Tensor::track_op`]s must have one.
pub(crate) fn result_of(
    name: &'static str,
    inputs: &[&Tensor],
    shape: impl Into<Shape>,
    dtype: DType,
    backward: impl Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let made = Made {
        name,
        shape: shape.into(),
        dtype,
        backward: Box::new(backward),
    };
    made.of(inputs)
}

/// See [`result_of`].
struct Made {
    name: &'static str,
    shape: Shape,
    dtype: DType,
    backward: Box<Backward>,
}

impl Made {
    fn of(self, inputs: &[&Tensor]) -> Result<Tensor> {
        Ok(match inputs {
            [x] => x.apply_op1(self)?,
            [x, y] => x.apply_op2(y, self)?,
            [x, y, z] => x.apply_op3(y, z, self)?,
            [x, y, others @ ..] => self.of_many(x, y, others)?,
            [] => return Err(Error::shape(self.name, "at least one input", 0)),
        })
    }

    /// candle's graph has nodes of up to three inputs: all from the third on hang on one of a single number, which is
    /// walked back after the result and finds their gradients ready.
    fn of_many(self, x: &Tensor, y: &Tensor, others: &[&Tensor]) -> Result<Tensor> {
        let ready: Arc<Mutex<Vec<Option<Tensor>>>> = Arc::default();
        let found = ready.clone();
        let link = result_of(self.name, others, 1, DType::F32, move |_, _, _| {
            Ok(std::mem::take(
                &mut *found.lock().unwrap_or_else(PoisonError::into_inner),
            ))
        })?;
        let others: Vec<Tensor> = others.iter().map(|x| (*x).clone()).collect();
        let backward = self.backward;
        let all_back = move |inputs: &[&Tensor], result: &Tensor, gradient: &Tensor| {
            let all: Vec<&Tensor> = inputs[..2].iter().copied().chain(&others).collect();
            let mut gradients = backward(&all, result, gradient)?;
            let rest = gradients.split_off(2);
            let link = inputs[2].track_op();
            if link {
                *ready.lock().unwrap_or_else(PoisonError::into_inner) = rest;
            }
            gradients.push(link.then(|| inputs[2].zeros_like()).transpose()?);
            Ok(gradients)
        };
        result_of(self.name, &[x, y, &link], self.shape, self.dtype, all_back)
    }

    fn on_cpu(&self) -> CandleResult<(CpuStorage, Shape)> {
        let n = self.shape.elem_count();
        let storage = match self.dtype {
            DType::F32 => CpuStorage::F32(vec![f32::NAN; n]),
            DType::BF16 => CpuStorage::BF16(vec![half::bf16::NAN; n]),
            other => candle_core::bail!("{} gives no {}", self.name, other.as_str()),
        };
        Ok((storage, self.shape.clone()))
    }

    fn on_gpu(&self, _like: &CudaStorage) -> CandleResult<(CudaStorage, Shape)> {
        #[cfg(feature = "cuda")]
        return Ok((
            cuda::unwritten(_like, self.shape.elem_count(), self.dtype)?,
            self.shape.clone(),
        ));
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("{}: this build has no CUDA support", self.name)
    }

    fn gradients<const N: usize>(
        &self,
        inputs: [&Tensor; N],
        result: &Tensor,
        gradient: &Tensor,
    ) -> CandleResult<[Option<Tensor>; N]> {
        let found = (self.backward)(&inputs, result, &gradient.contiguous()?).map_err(candle_core::Error::wrap)?;
        let count = found.len();
        <[Option<Tensor>; N]>::try_from(found)
            .map_err(|_| candle_core::Error::Msg(format!("{}: {count} gradients of {N} inputs", self.name)))
    }
}

impl CustomOp1 for Made {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.on_gpu(x)
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> CandleResult<Option<Tensor>> {
        let [x] = self.gradients([x], result, gradient)?;
        Ok(x)
    }
}

impl CustomOp2 for Made {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, x: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        self.on_gpu(x)
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = self.gradients([x, y], result, gradient)?;
        Ok((x, y))
    }
}

impl CustomOp3 for Made {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        self.on_gpu(x)
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = self.gradients([x, y, z], result, gradient)?;
        Ok((x, y, z))
    }
}
