//! From the bytes of an image file to the numbers a network takes.
//!
//! Decides: the way to the network's shape: shorter side to `resize` with an anti-aliasing
//! bilinear filter, centre crop, (value / 255 - mean) / std, all as torchvision's `Resize`,
//! `CenterCrop`, `ToTensor` and `Normalize` do it on Pillow's images; that alpha is dropped
//! (the colours beneath it count, as in Pillow); that grey is ITU-R BT.601's; and that a
//! picture is turned upright first, which torchvision leaves undone. Leaves to others:
//! decoding and its bounds (`decode`, `jpeg`), reading files, everything after the numbers.
//!
//! Only the part of the picture that the crop keeps is scaled: the same pixels as from
//! scaling all of it, for less work.
//!
//! A refusal's text lands in a row of `JOB.csv`: one short line that says what to do.

use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::DynamicImage;
use image::metadata::Orientation;

use super::manifest::{Input, Manifest};

mod decode;
mod jpeg;

pub use decode::decode;

/// Longest side that is decoded, in pixels.
pub const SIDE_MAX: u32 = 16_384;
/// Most pixels that are decoded.
pub const PIXELS_MAX: u64 = 64 << 20;
/// Most bytes that a decoded image may take, and whatever must be held with it while it
/// is decoded: [`PIXELS_MAX`] of 4 bytes.
pub const DECODED_BYTES_MAX: u64 = 256 << 20;
/// Longest explanation taken over from a decoder, in characters.
const REASON_LENGTH_MAX: usize = 80;

/// Why a file is not classified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes.
    #[error("empty file: upload the image again")]
    Empty,
    /// Another image format.
    #[error("{0} image: convert it to PNG or JPEG")]
    Format(&'static str),
    /// A kind of JPEG that is not decoded.
    #[error("{0} is not supported: save it as PNG or as an ordinary JPEG")]
    Variant(&'static str),
    /// No image at all, whatever its name says.
    #[error("not an image: use PNG or JPEG")]
    NotAnImage,
    /// Its header announces more than is decoded.
    #[error(
        "{width}x{height} pixels are too many: at most {SIDE_MAX} a side, 64 megapixels, 256 MiB decoded"
    )]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// It ends early.
    #[error("truncated {0}: upload the whole file again")]
    Truncated(&'static str),
    /// The decoder gave up.
    #[error("broken {format} ({reason}): upload an intact file")]
    Broken {
        /// `PNG` or `JPEG`.
        format: &'static str,
        /// The decoder's words, in one short line.
        reason: String,
    },
    /// The picture is fine, and cannot be scaled.
    #[error("cannot be scaled ({0}): convert it to another size")]
    Unscalable(String),
}

/// Refuses what a header announces, before a pixel is decoded. `bytes`: what is held at
/// once to decode it.
fn check_size(width: u32, height: u32, bytes: u64) -> Result<(), ImageError> {
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > SIDE_MAX || pixels > PIXELS_MAX || bytes > DECODED_BYTES_MAX {
        return Err(ImageError::TooLarge { width, height });
    }
    Ok(())
}

/// A refusal in the decoder's words, brought to one short line.
fn broken(format: &'static str, words: &str) -> ImageError {
    let reason = words
        .trim()
        .chars()
        .map(|c| if c.is_control() || c == '"' { ' ' } else { c })
        .take(REASON_LENGTH_MAX)
        .collect();
    ImageError::Broken { format, reason }
}

/// Which pixels are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    /// Grey, or what grey is made from.
    Grey,
    /// Those of the file, perhaps with an alpha that says nothing: four bytes a pixel are
    /// scaled in half the time of three.
    Padded,
    /// Those of the file.
    AsStored,
}

/// Decodes the image file `bytes` and brings it to what `manifest` says.
///
/// *Shape*: `channels x height x width`, row by row, channel after channel.
/// *Errors*: [`ImageError`]; memory stays bounded whatever the bytes are.
pub fn prepare(bytes: &[u8], manifest: &Manifest) -> Result<Vec<f32>, ImageError> {
    let mut numbers = Vec::with_capacity(manifest.input.len());
    prepare_into(bytes, manifest, &mut numbers)?;
    Ok(numbers)
}

/// Like [`prepare`], appending to `numbers`, which an error leaves as they are.
pub fn prepare_into(
    bytes: &[u8],
    manifest: &Manifest,
    numbers: &mut Vec<f32>,
) -> Result<(), ImageError> {
    let colours = if manifest.input.channels == 1 {
        Colours::Grey
    } else {
        Colours::Padded
    };
    let (image, orientation) = decode::stored(bytes, colours)?;
    let image = fit(image, orientation, &manifest.input)?;
    let channels = image.color().channel_count();
    append(
        image.as_bytes(),
        channels,
        &manifest.mean,
        &manifest.std,
        numbers,
    );
    Ok(())
}

/// Interleaved 8-bit pixels as planes of normalised numbers, one plane for each mean:
/// of one for grey, three for colour.
pub fn normalise(pixels: &[u8], mean: &[f32], std: &[f32]) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(pixels.len());
    let channels = if mean.len() == 1 { 1 } else { 3 };
    append(pixels, channels, mean, std, &mut numbers);
    numbers
}

/// Appends a plane for each mean. Alpha, the last of 2 or 4 channels, is left out; grey
/// goes into all planes; colour that is to be grey becomes it here, where least is left.
fn append(pixels: &[u8], channels: u8, mean: &[f32], std: &[f32], numbers: &mut Vec<f32>) {
    for (plane, (mean_of_plane, std)) in mean.iter().zip(std).enumerate() {
        // (value / 255 - mean) / std but for the last bit or two; dividing is slow.
        let scale = 1.0 / (255.0 * std);
        let shift = -mean_of_plane / std;
        let number = |value: u8| f32::from(value) * scale + shift;
        let plane = plane.min(2);
        let threes = pixels.as_chunks::<3>().0.iter();
        let fours = pixels.as_chunks::<4>().0.iter();
        match (channels, mean.len()) {
            (1, _) => numbers.extend(pixels.iter().map(|pixel| number(*pixel))),
            (2, _) => numbers.extend(pixels.iter().step_by(2).map(|pixel| number(*pixel))),
            (3, 1) => numbers.extend(threes.map(|pixel| number(to_grey(pixel)))),
            (3, _) => numbers.extend(threes.map(|pixel| number(pixel[plane]))),
            (_, 1) => numbers.extend(fours.map(|pixel| number(to_grey(pixel)))),
            // Taken out of a word, several pixels become numbers at a time.
            (_, _) => numbers.extend(fours.map(|pixel| {
                let value = (u32::from_le_bytes(*pixel) >> (8 * plane)) & 0xff;
                value as i32 as f32 * scale + shift
            })),
        }
    }
}

/// Grey as Pillow makes it, which is also the luma of a JPEG. (`image` has the weights of
/// ITU-R BT.709.)
fn to_grey<const N: usize>(pixel: &[u8; N]) -> u8 {
    let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    // Below 256, for the weights add up to 65,536.
    ((red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16) as u8
}

/// A part of one side of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    from: f64,
    length: f64,
}

impl Span {
    /// What becomes the middle `wanted` pixels when `whole` pixels are scaled to `scaled`.
    fn middle(whole: u32, scaled: u32, wanted: u32) -> Span {
        let scale = f64::from(whole) / f64::from(scaled);
        let from = f64::from(margin(scaled, wanted)) * scale;
        Span {
            from,
            length: f64::from(wanted) * scale,
        }
        .within(whole)
    }

    /// The same part, seen from the other end.
    fn mirrored(self, whole: u32) -> Span {
        let from = f64::from(whole) - self.from - self.length;
        Span { from, ..self }.within(whole)
    }

    /// Without the last bit by which rounding may have put it outside.
    fn within(self, whole: u32) -> Span {
        let whole = f64::from(whole);
        let from = self.from.max(0.0);
        let mut length = self.length.min(whole - from);
        if from + length > whole {
            length = length.next_down();
        }
        Span { from, length }
    }
}

/// Pixels before the middle `wanted` of `whole`. A half is rounded to the even number, as
/// torchvision's `CenterCrop` does by Python's `round`.
fn margin(whole: u32, wanted: u32) -> u32 {
    let surplus = whole.saturating_sub(wanted);
    let half = surplus / 2;
    half + (surplus % 2) * (half % 2)
}

/// Width and height when the shorter side is scaled to `side`. The longer one is rounded
/// down, as in torchvision's `Resize`.
fn scaled_size(width: u32, height: u32, side: u32) -> (u32, u32) {
    let shorter = width.min(height).max(1);
    let scaled = |pixels: u32| {
        let scaled = u64::from(pixels) * u64::from(side) / u64::from(shorter);
        u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
    };
    (scaled(width), scaled(height))
}

/// How stored pixels lie when the picture is upright: whether its rows are stored as
/// columns, and whether stored columns and stored rows run backwards.
fn lie(orientation: Orientation) -> (bool, bool, bool) {
    match orientation {
        Orientation::NoTransforms => (false, false, false),
        Orientation::FlipHorizontal => (false, true, false),
        Orientation::FlipVertical => (false, false, true),
        Orientation::Rotate180 => (false, true, true),
        Orientation::Rotate90FlipH => (true, false, false),
        Orientation::Rotate90 => (true, false, true),
        Orientation::Rotate270 => (true, true, false),
        Orientation::Rotate270FlipH => (true, true, true),
    }
}

/// Scales the shorter side to `resize`, cuts out the centre and turns it upright. Only
/// what is cut out is scaled and turned; where that is, is reckoned on the upright picture.
fn fit(
    image: DynamicImage,
    orientation: Orientation,
    input: &Input,
) -> Result<DynamicImage, ImageError> {
    let (sideways, columns_back, rows_back) = lie(orientation);
    let turned = |(width, height)| {
        if sideways {
            (height, width)
        } else {
            (width, height)
        }
    };
    let stored = (image.width(), image.height());
    let upright = turned(stored);
    let scaled = scaled_size(upright.0, upright.1, input.shorter_side());
    let across = Span::middle(upright.0, scaled.0, input.width);
    let down = Span::middle(upright.1, scaled.1, input.height);
    let (mut columns, mut rows) = if sideways {
        (down, across)
    } else {
        (across, down)
    };
    if columns_back {
        columns = columns.mirrored(stored.0);
    }
    if rows_back {
        rows = rows.mirrored(stored.1);
    }
    let wanted = turned((input.width, input.height));
    let mut fitted = if scaled == upright && stored == wanted {
        image
    } else {
        let mut part = DynamicImage::new(wanted.0, wanted.1, image.color());
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
            .crop(columns.from, rows.from, columns.length, rows.length)
            .use_alpha(false);
        Resizer::new()
            .resize(&image, &mut part, &options)
            .map_err(|error| ImageError::Unscalable(error.to_string()))?;
        part
    };
    fitted.apply_orientation(orientation);
    Ok(fitted)
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
