//! A TorchScript module made in memory from its source, so that operators which only
//! TorchScript can name are called without Python and without C++ of our own.
//!
//! Decides: the archive that libtorch's loader takes: an uncompressed zip file with the
//! code, a module object without attributes, and no constants. Weights are arguments, not
//! attributes. Leaves to others: the code (`fused`).
//!
//! *Source*: PyTorch's notes on TorchScript serialization (`torch/csrc/jit/docs`); for the
//! zip container, PKWARE's APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16.

/// The class of the one module; the archive's code must have the name of its namespace.
const CLASS: &str = "Network";

/// A pickled `__torch__.Network()` without attributes: protocol 2, the class, an empty
/// tuple of arguments, the new object, an empty dictionary, build, stop.
const OBJECT: &[u8] = b"\x80\x02c__torch__\nNetwork\n)\x81}b.";
/// A pickled empty tuple.
const NO_CONSTANTS: &[u8] = b"\x80\x02).";
/// The archive format's version. Newer libtorch versions upgrade older code.
const VERSION: &[u8] = b"10\n";

/// The archive of a module with these `methods`: definitions of methods of one class, in
/// TorchScript, each starting at the left margin with `def`. Their `self` has type
/// `__torch__.Network`.
pub fn archive(methods: &str) -> Vec<u8> {
    let mut code = format!("class {CLASS}(Module):\n  __parameters__ = []\n  __buffers__ = []\n");
    for line in methods.lines() {
        code.push_str("  ");
        code.push_str(line);
        code.push('\n');
    }
    zip(&[
        ("network/data.pkl", OBJECT),
        ("network/code/__torch__.py", code.as_bytes()),
        ("network/constants.pkl", NO_CONSTANTS),
        ("network/version", VERSION),
        ("network/byteorder", b"little"),
    ])
}

/// Compiles `methods`, which are those of an [`archive`].
///
/// *Errors*: libtorch does not compile them; its words name the line.
#[cfg(feature = "torch")]
pub(super) fn module(methods: &str) -> Result<tch::CModule, tch::TchError> {
    let mut archive = std::io::Cursor::new(archive(methods));
    tch::CModule::load_data_on_device(&mut archive, tch::Device::Cpu)
}

/// Calls `forward` of a module that takes a batch and weights.
#[cfg(feature = "torch")]
pub(super) fn call(
    module: &tch::CModule,
    weights: &[tch::Tensor],
    batch: &tch::Tensor,
) -> Result<tch::Tensor, tch::TchError> {
    use tch::{IValue, TchError, Tensor};
    let weights = weights.iter().map(Tensor::shallow_clone).collect();
    let batch = IValue::Tensor(batch.shallow_clone());
    match module.forward_is(&[batch, IValue::TensorList(weights)])? {
        IValue::Tensor(logits) => Ok(logits),
        other => Err(TchError::Kind(format!("forward gave {other:?}, no tensor"))),
    }
}

/// A zip file of these entries, stored as they are.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    const LOCAL: u32 = 0x0403_4b50;
    const CENTRAL: u32 = 0x0201_4b50;
    const END: u32 = 0x0605_4b50;
    /// Version 1.0 suffices to extract; 1 January 1980 is the first date there is.
    const EXTRACT: u16 = 10;
    const DATE: u16 = 0x21;
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (name, body) in entries {
        let offset = file.len() as u32;
        // Flags, method 0, time, date, checksum, sizes, lengths of name and extra field.
        let mut common = Vec::new();
        for field in [EXTRACT, 0, 0, 0, DATE] {
            common.extend(field.to_le_bytes());
        }
        common.extend(crc32fast::hash(body).to_le_bytes());
        common.extend((body.len() as u32).to_le_bytes());
        common.extend((body.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend(0u16.to_le_bytes());
        file.extend(LOCAL.to_le_bytes());
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*body);
        directory.extend(CENTRAL.to_le_bytes());
        directory.extend(EXTRACT.to_le_bytes());
        directory.extend(&common);
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    file.extend(&directory);
    file.extend(END.to_le_bytes());
    file.extend([0; 4]);
    file.extend(count.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0; 2]);
    file
}

#[cfg(all(test, feature = "torch"))]
mod tests {
    use super::*;
    use tch::{Device, IValue, Kind, Tensor};

    #[test]
    fn a_method_is_compiled_and_called() {
        let source = "def forward(self: __torch__.Network, x: Tensor, w: List[Tensor]) -> Tensor:\n  return torch.add(torch.mul(x, w[0]), w[1])";
        let module = module(source).expect("compiled");
        let number = |value: f64| Tensor::full([2], value, (Kind::Float, Device::Cpu));
        let weights = IValue::TensorList(vec![number(3.0), number(4.0)]);
        let answer = module.forward_is(&[IValue::Tensor(number(2.0)), weights]);
        let Ok(IValue::Tensor(answer)) = answer else {
            panic!("a tensor: {answer:?}")
        };
        assert_eq!(answer.double_value(&[1]), 10.0);
    }

    #[test]
    fn what_libtorch_does_not_know_is_an_error() {
        let source = "def forward(self: __torch__.Network, x: Tensor) -> Tensor:\n  return ops.mkldnn._no_such_operator(x)";
        assert!(module(source).is_err());
    }
}
