//! From the bytes of an image file to the numbers a network takes.
//!
//! Decides: which files are accepted (PNG and JPEG, told by their contents), the bounds
//! that keep a hostile file from taking memory, and the way to the network's shape:
//! shorter side to `resize`, centre crop, (value / 255 - mean) / std. Leaves to others:
//! reading files, and everything after the numbers.
//!
//! A refusal's text lands in a row of `JOB.csv`: one short line that says what to do.

use std::io::Cursor;

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits};

use super::manifest::{Input, Manifest};

/// Longest side that is decoded, in pixels.
pub const SIDE_MAX: u32 = 16_384;
/// Most pixels that are decoded.
pub const PIXELS_MAX: u64 = 64 << 20;
/// Most bytes that a decoded image may take: [`PIXELS_MAX`] of 4 bytes.
const DECODED_BYTES_MAX: u64 = 256 << 20;
/// An image longer than this many times its shorter side is cut before it is scaled,
/// so that scaling a 1 x 16,384 strip does not take gigabytes.
const ASPECT_MAX: u32 = 4;
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
}

/// Decodes the image file `bytes` and brings it to what `manifest` says.
///
/// *Shape*: `channels x height x width`, row by row, channel after channel.
/// *Errors*: [`ImageError`]; memory stays bounded whatever the bytes are.
pub fn prepare(bytes: &[u8], manifest: &Manifest) -> Result<Vec<f32>, ImageError> {
    let image = fit(decode(bytes)?, &manifest.input);
    Ok(if manifest.input.channels == 1 {
        normalise(&image.into_luma8(), &manifest.mean, &manifest.std)
    } else {
        normalise(&image.into_rgb8(), &manifest.mean, &manifest.std)
    })
}

/// Interleaved 8-bit pixels as planes of normalised numbers, one plane for each mean.
pub fn normalise(pixels: &[u8], mean: &[f32], std: &[f32]) -> Vec<f32> {
    let channels = mean.len();
    let mut numbers = Vec::with_capacity(pixels.len());
    for (channel, (mean, std)) in mean.iter().zip(std).enumerate() {
        let plane = pixels.iter().skip(channel).step_by(channels);
        numbers.extend(plane.map(|value| (f32::from(*value) / 255.0 - mean) / std));
    }
    numbers
}

/// Decodes a PNG or JPEG file whose announced size is within the bounds.
///
/// *Errors*: [`ImageError`]; memory stays bounded whatever the bytes are.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => {
            let broken = |error| refusal("PNG", &error);
            let mut limits = Limits::default();
            limits.max_alloc = Some(DECODED_BYTES_MAX);
            decode_within_limits(
                PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(broken)?,
                "PNG",
            )
        }
        Ok(ImageFormat::Jpeg) => {
            let broken = |error| refusal("JPEG", &error);
            let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(broken)?;
            check_size(&decoder)?;
            if !jpeg_is_complete(bytes) {
                return Err(ImageError::Truncated("JPEG"));
            }
            decode_within_limits(decoder, "JPEG")
        }
        Ok(ImageFormat::Gif) => Err(ImageError::Format("GIF")),
        Ok(ImageFormat::WebP) => Err(ImageError::Format("WebP")),
        Ok(ImageFormat::Bmp) => Err(ImageError::Format("BMP")),
        Ok(ImageFormat::Tiff) => Err(ImageError::Format("TIFF")),
        Ok(ImageFormat::Avif) => Err(ImageError::Format("AVIF")),
        _ => Err(ImageError::NotAnImage),
    }
}

fn decode_within_limits<D: ImageDecoder>(
    mut decoder: D,
    format: &'static str,
) -> Result<DynamicImage, ImageError> {
    check_size(&decoder)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    decoder
        .set_limits(limits)
        .and_then(|()| DynamicImage::from_decoder(decoder))
        .map_err(|error| refusal(format, &error))
}

/// Refuses what the header announces, before a pixel is decoded.
fn check_size(decoder: &impl ImageDecoder) -> Result<(), ImageError> {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let bytes = decoder.total_bytes();
    if width.max(height) > SIDE_MAX || pixels > PIXELS_MAX || bytes > DECODED_BYTES_MAX {
        return Err(ImageError::TooLarge { width, height });
    }
    Ok(())
}

fn refusal(format: &'static str, error: &image::ImageError) -> ImageError {
    let words = error.to_string();
    let early = matches!(error, image::ImageError::IoError(cause)
        if cause.kind() == std::io::ErrorKind::UnexpectedEof);
    if early || words.to_lowercase().contains("unexpected end") {
        return ImageError::Truncated(format);
    }
    let reason = words
        .chars()
        .map(|c| if c.is_control() || c == '"' { ' ' } else { c })
        .take(REASON_LENGTH_MAX)
        .collect();
    ImageError::Broken { format, reason }
}

/// Whether the JPEG stream reaches its end-of-image marker. The decoder paints what is
/// missing grey, which would be classified as if it were the picture.
///
/// *Source*: ITU-T T.81, annex B: segments carry their length; in entropy-coded data
/// 0xFF is followed by 0x00, by a restart marker, or by the next segment's marker.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const TEMPORARY: u8 = 0x01;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut at = 2;
    loop {
        // To the next marker: in a header that is the next byte, in a scan it may be far.
        let Some(found) = bytes
            .get(at..)
            .and_then(|rest| rest.iter().position(|b| *b == 0xff))
        else {
            return false;
        };
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            Some(&END_OF_IMAGE) => return true,
            Some(0xff) => {}
            Some(0x00 | &TEMPORARY | 0xd0..=0xd8) => at += 1,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else {
                    return false;
                };
                at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

/// Cuts a strip to the middle that is [`ASPECT_MAX`] times as long as it is wide.
fn shorten(image: DynamicImage) -> DynamicImage {
    let (width, height) = (image.width(), image.height());
    let longest = width.min(height).saturating_mul(ASPECT_MAX);
    if width.max(height) <= longest {
        return image;
    }
    centre(&image, width.min(longest), height.min(longest))
}

/// Scales the shorter side to `resize` and cuts out the centre.
fn fit(mut image: DynamicImage, input: &Input) -> DynamicImage {
    image = shorten(image);
    let shorter = image.width().min(image.height());
    let side = input.shorter_side();
    if shorter != side {
        let scaled = |pixels: u32| {
            let scaled = u64::from(pixels) * u64::from(side) / u64::from(shorter);
            u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
        };
        let (width, height) = (scaled(image.width()), scaled(image.height()));
        image = if input.channels == 1 {
            imageops::resize(&image.into_luma8(), width, height, FilterType::Triangle).into()
        } else {
            imageops::resize(&image.into_rgb8(), width, height, FilterType::Triangle).into()
        };
    }
    if (image.width(), image.height()) == (input.width, input.height) {
        return image;
    }
    centre(&image, input.width, input.height)
}

/// The middle `width` x `height` pixels of `image`.
fn centre(image: &DynamicImage, width: u32, height: u32) -> DynamicImage {
    let left = (image.width() - width) / 2;
    let top = (image.height() - height) / 2;
    image.crop_imm(left, top, width, height)
}

#[cfg(test)]
#[path = "prepare_tests.rs"]
mod tests;
