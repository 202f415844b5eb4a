//! The ways that a batch may take through a network, fastest first.
//!
//! Decides: nothing; it names them for the log and for `stats`, in executables without
//! libtorch too. `engine` and `packs` choose.

/// A way through a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// 8-bit integers.
    Int8,
    /// Layers fused with what comes after them: ResNet-50's on weights that were packed for
    /// the batch's size, LeNet's in one piece.
    Fused,
    /// Batch norms folded into convolutions, ordinary operators.
    Folded,
    /// Operator by operator, as the network is written down.
    Plain,
    /// The network's own code (TorchScript).
    Script,
}

impl Route {
    /// Its name, one word.
    pub fn name(self) -> &'static str {
        match self {
            Route::Int8 => "int8",
            Route::Fused => "fused",
            Route::Folded => "folded",
            Route::Plain => "plain",
            Route::Script => "script",
        }
    }
}
