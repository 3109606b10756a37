//! Activations of feed-forward blocks, by the names that Hugging Face configurations give them.

use candle_core::Tensor;

use crate::lanes;

/// Activation of the feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU with erf (`gelu`).
    Gelu,
    /// GELU with tanh (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// ReLU (`relu`).
    Relu,
    /// `x / (1 + exp(-x))` (`silu`, `swish`).
    Silu,
}

impl Activation {
    /// The names that [`Activation::named`] knows, for messages.
    pub(crate) const NAMES: &str = "\"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\", \"silu\", \"swish\"";

    /// The activation of a name in `config.json`, or `None` where it is unknown.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
            "relu" => Some(Activation::Relu),
            "silu" | "swish" => Some(Activation::Silu),
            _ => None,
        }
    }

    /// Applies it to every element, in place.
    pub(crate) fn apply(self, x: &mut [f32]) {
        match self {
            Activation::Gelu => lanes::gelu(x),
            Activation::GeluTanh => lanes::gelu_tanh(x),
            Activation::Relu => lanes::relu(x),
            Activation::Silu => lanes::silu(x),
        }
    }

    /// The same by candle.
    pub(crate) fn of_tensor(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
            Activation::Relu => x.relu(),
            Activation::Silu => x.silu(),
        }
    }
}
