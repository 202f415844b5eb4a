//! What can be wrong with a network, in words for people.

/// A network that cannot be loaded or that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// The bytes are not those that were published or trained.
    #[error(
        "model {model}: the weights have digest {found} instead of {wanted}: fetch or train them again"
    )]
    Digest {
        /// The model.
        model: String,
        /// Of the bytes at hand.
        found: String,
        /// As the manifest or the publisher says.
        wanted: String,
    },
    /// The weights file cannot be read as what it should be.
    #[error("model {model}: {problem}: fetch or train the weights again")]
    Weights {
        /// The model.
        model: String,
        /// What is wrong.
        problem: String,
    },
    /// The weights file is what `torch.save` writes.
    #[error(
        "model {model}: the weights are a .pt file of Python's, no safetensors file: save them with safetensors.torch.save_file(network.state_dict(), FILE)"
    )]
    Pickle {
        /// The model.
        model: String,
    },
    /// A tensor of the architecture is not in the file.
    #[error(
        "model {model}: tensor {tensor} is missing: the weights belong to another architecture"
    )]
    MissingTensor {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor in the file is not in the architecture.
    #[error(
        "model {model}: tensor {tensor} is unknown: the weights belong to another architecture"
    )]
    UnknownTensor {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the architecture wants (-1: any length).
    #[error(
        "model {model}: tensor {tensor} has shape {found:?} instead of {wanted:?}: the weights belong to another architecture"
    )]
    Shape {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
        /// In the file.
        found: Vec<i64>,
        /// In the architecture.
        wanted: Vec<i64>,
    },
    /// A weight is NaN or infinite.
    #[error("model {model}: tensor {tensor} holds NaN or infinite numbers: train the model again")]
    NotFinite {
        /// The model.
        model: String,
        /// The tensor.
        tensor: String,
    },
    /// The manifest names more or fewer labels than the network has outputs.
    #[error(
        "model {model}: {labels} labels for {outputs} outputs: correct `labels` in the manifest"
    )]
    Labels {
        /// The model.
        model: String,
        /// In the manifest.
        labels: usize,
        /// Of the network.
        outputs: usize,
    },
    /// A network of one's own gave something else than a row of numbers for each input.
    #[error(
        "model {model}: its answer to a batch of {count} has shape {found:?}: a network must give \
         [inputs, labels]"
    )]
    Output {
        /// The model.
        model: String,
        /// Inputs of the batch.
        count: usize,
        /// Shape of the answer.
        found: Vec<i64>,
    },
    /// The batch has another length than its count of inputs says.
    #[error("model {model}: a batch of {numbers} numbers for {count} inputs of {each}")]
    Batch {
        /// The model.
        model: String,
        /// Numbers given.
        numbers: usize,
        /// Inputs promised.
        count: usize,
        /// Numbers in one input.
        each: usize,
    },
    /// The network answered NaN or infinity to an input of zeros.
    #[error(
        "model {model}: its answer to an image of the mean colour is not finite: its weights are damaged, or `mean` and `std` in the manifest are not those that it was trained with"
    )]
    Answer {
        /// The model.
        model: String,
    },
    /// A network of one's own fails on a batch of two inputs, zeros and random numbers.
    #[error(
        "model {model}: it answers one image and fails on two, a plain one and one of random pixels ({problem}): a network must take any number of any images"
    )]
    Two {
        /// The model.
        model: String,
        /// What went wrong with two.
        problem: String,
    },
    /// A `.pt` file that holds no network.
    #[error(
        "model {model}: no TorchScript network ({problem}): save it with torch.jit.save(torch.jit.script(network), FILE); a state_dict is only its weights"
    )]
    Script {
        /// The model.
        model: String,
        /// libtorch's words, in one line.
        problem: String,
    },
    /// libtorch refused.
    #[error("model {model}: libtorch: {problem}")]
    Torch {
        /// The model.
        model: String,
        /// libtorch's words, in one line.
        problem: String,
    },
    /// A network of one's own was tried in a process of its own, and that went wrong.
    #[error("model {model}: {problem}: correct the network and publish it again")]
    Trial {
        /// The model.
        model: String,
        /// What went wrong.
        problem: String,
    },
    /// What the process said that tried a network.
    #[error("{0}")]
    Tried(String),
    /// No such device.
    #[error("device {0:?}: use auto, cpu, or cuda:N with the number of a GPU that libtorch sees")]
    Device(String),
}

/// libtorch's error for people: its first line, without the C++ stack under it; of an
/// error within TorchScript the last line of its traceback, which says what happened.
#[cfg(feature = "torch")]
pub(super) fn words(error: &tch::TchError) -> String {
    let words = error.to_string();
    let words = words.split("Exception raised from").next().unwrap_or("");
    let mut lines = words.lines().filter(|line| !line.trim().is_empty());
    let line = match words.contains("Traceback of TorchScript") {
        true => lines.next_back(),
        false => lines.next(),
    };
    let line = line.unwrap_or("unknown error");
    line.trim().chars().take(300).collect()
}

/// libtorch's refusal to do something with `model`.
#[cfg(feature = "torch")]
pub(super) fn torch(model: &str, error: &tch::TchError) -> ModelError {
    ModelError::Torch {
        model: model.into(),
        problem: words(error),
    }
}
