//! Weights as named tensors, from and to safetensors.
//!
//! Decides: that a file is well formed, and that each tensor a network asks for is
//! there, has the right shape and holds finite numbers; what nobody asked for is an
//! error too, so that a file of another architecture is not taken for this one. Leaves
//! to others: which tensors a network has (`lenet`, `resnet50`).

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};

use super::error::ModelError;

/// Suffix of counters that torchvision stores beside batch norms and inference ignores.
const IGNORED_SUFFIX: &str = ".num_batches_tracked";

/// The tensors of one weights file, each taken once by the network.
pub struct Weights {
    model: String,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Reads the safetensors file `bytes` of `model`. Numbers of 16 and 64 bits become
    /// 32-bit floats.
    ///
    /// *Errors*: [`ModelError::Weights`] where the bytes are no safetensors file or hold
    /// a type that is no floating-point number.
    pub fn from_safetensors(model: &str, bytes: &[u8]) -> Result<Weights, ModelError> {
        let broken = |problem: String| ModelError::Weights {
            model: model.into(),
            problem,
        };
        if bytes.starts_with(b"PK\x03\x04") {
            return Err(ModelError::Pickle {
                model: model.into(),
            });
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| broken(format!("no intact safetensors file ({error})")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            if name.ends_with(IGNORED_SUFFIX) {
                continue;
            }
            let kind = match view.dtype() {
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::F32 => Kind::Float,
                Dtype::F64 => Kind::Double,
                other => return Err(broken(format!("tensor {name} has type {other:?}"))),
            };
            let shape: Vec<i64> = view.shape().iter().map(|side| *side as i64).collect();
            let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)
                .and_then(|tensor| tensor.f_to_kind(Kind::Float))
                .map_err(|error| broken(format!("tensor {name}: {error}")))?;
            tensors.insert(name.to_string(), tensor);
        }
        Ok(Weights {
            model: model.into(),
            tensors,
        })
    }

    /// Tensors that are already in memory, as weights of `model`.
    pub fn from_tensors(model: &str, tensors: Vec<(String, Tensor)>) -> Weights {
        Weights {
            model: model.into(),
            tensors: tensors.into_iter().collect(),
        }
    }

    /// The model that the weights belong to, for errors.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The shape of the tensor `name`, where it is there and was not taken.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(Tensor::size)
    }

    /// Leaves the tensor `name` unused, on purpose.
    pub fn discard(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The tensor `name`, which must have `shape`, where -1 stands for any length.
    ///
    /// *Errors*: missing, another shape, or not finite; each names the tensor.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let Some(tensor) = self.tensors.remove(name) else {
            return Err(ModelError::MissingTensor {
                model: self.model.clone(),
                tensor: name.into(),
            });
        };
        let found = tensor.size();
        let fits = found.len() == shape.len()
            && found
                .iter()
                .zip(shape)
                .all(|(found, wanted)| *wanted == -1 || found == wanted);
        if !fits {
            return Err(ModelError::Shape {
                model: self.model.clone(),
                tensor: name.into(),
                found,
                wanted: shape.into(),
            });
        }
        check_finite(&self.model, name, &tensor)?;
        Ok(tensor)
    }

    /// Ends the reading: every tensor must have been taken.
    ///
    /// *Errors*: [`ModelError::UnknownTensor`] with the first that was not.
    pub fn finish(self) -> Result<(), ModelError> {
        match self.tensors.into_keys().next() {
            None => Ok(()),
            Some(tensor) => Err(ModelError::UnknownTensor {
                model: self.model,
                tensor,
            }),
        }
    }
}

/// Refuses NaN and infinite numbers in a tensor.
pub(super) fn check_finite(model: &str, name: &str, tensor: &Tensor) -> Result<(), ModelError> {
    let finite = tensor.isfinite().all();
    if finite.int64_value(&[]) == 1 {
        return Ok(());
    }
    Err(ModelError::NotFinite {
        model: model.into(),
        tensor: name.into(),
    })
}

/// The tensors as a safetensors file of 32-bit (`Kind::Float`) or 16-bit (`Kind::Half`)
/// floats, with `note` (its name and text) in the header. The same tensors and note give
/// the same bytes.
///
/// *Panics* for other kinds.
pub fn to_safetensors(
    tensors: &[(String, Tensor)],
    kind: Kind,
    note: Option<(&str, String)>,
) -> Vec<u8> {
    let (dtype, width) = match kind {
        Kind::Float => (Dtype::F32, 4),
        Kind::Half => (Dtype::F16, 2),
        other => panic!("weights are not written as {other:?}"),
    };
    let data: Vec<(Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(_, tensor)| {
            let tensor = tensor.to_device(Device::Cpu).to_kind(kind).contiguous();
            let shape = tensor.size().iter().map(|side| *side as usize).collect();
            let mut bytes = vec![0; tensor.numel() * width];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, _), (shape, bytes))| {
            let view = TensorView::new(dtype, shape.clone(), bytes);
            (
                name.as_str(),
                view.expect("as many bytes as the shape says"),
            )
        });
    let note = note.map(|(name, text)| [(name.to_string(), text)].into());
    safetensors::serialize(views, note).expect("shapes and names are valid")
}
