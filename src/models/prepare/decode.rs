//! From the bytes of an image file to its pixels, 8 bits a channel.
//!
//! Decides: which files are accepted (PNG and JPEG, told by their contents), and the
//! bounds that keep a hostile file from taking memory or time. Leaves to others: JPEG's
//! own structure (`jpeg`), and what becomes of the pixels.
//!
//! - 16-bit channels lose their lower byte; palettes and fewer bits become 8 bits.
//! - An animated PNG is its default image, which is what stands still elsewhere.
//! - EXIF orientation is obeyed in both formats; in a PNG it must precede the pixels.
//! - Colour profiles and gamma are ignored, as torchvision does.

use std::io::{Cursor, ErrorKind};

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer};
use png::{ColorType, DecodingError, Transformations};

use super::{Colours, ImageError, broken, check_size, jpeg};

/// Most bytes that the PNG decoder may take besides the pixels: a row or two, and chunks.
const PNG_BYTES_MAX: usize = 16 << 20;

/// Decodes a PNG or JPEG file and turns it upright as its EXIF says: 8 bits a channel;
/// grey, grey and alpha, colour, or colour and alpha.
///
/// *Errors*: [`ImageError`]. Takes at most 256 MiB, and as much again where the picture
/// lies on its side.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage, ImageError> {
    let (mut image, orientation) = stored(bytes, Colours::AsStored)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Pixels as they are stored, and how they must be turned.
pub(super) fn stored(
    bytes: &[u8],
    colours: Colours,
) -> Result<(DynamicImage, Orientation), ImageError> {
    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
    const JPEG: &[u8] = b"\xff\xd8\xff";
    if bytes.is_empty() {
        Err(ImageError::Empty)
    } else if bytes.starts_with(PNG) {
        decode_png(bytes)
    } else if bytes.starts_with(JPEG) {
        jpeg::decode(bytes, colours)
    } else if PNG.starts_with(bytes) {
        Err(ImageError::Truncated("PNG"))
    } else if JPEG.starts_with(bytes) {
        Err(ImageError::Truncated("JPEG"))
    } else {
        Err(other_format(bytes))
    }
}

/// What a file is that is neither PNG nor JPEG.
fn other_format(bytes: &[u8]) -> ImageError {
    // Where it stands, what stands there, and what it is called.
    const SIGNATURES: [(usize, &[u8], &str); 15] = [
        (0, b"GIF8", "GIF"),
        (8, b"WEBP", "WebP"),
        (0, b"BM", "BMP"),
        (0, b"II*\0", "TIFF"),
        (0, b"MM\0*", "TIFF"),
        (4, b"ftypavif", "AVIF"),
        (4, b"ftypheic", "HEIC"),
        (4, b"ftypheix", "HEIC"),
        (4, b"ftypmif1", "HEIC"),
        (0, b"\xff\x0a", "JPEG XL"),
        (4, b"JXL \r\n", "JPEG XL"),
        (4, b"jP  \r\n", "JPEG 2000"),
        (0, b"\0\0\x01\0", "icon"),
        (0, b"%PDF", "PDF"),
        (0, b"<svg", "SVG"),
    ];
    let named = SIGNATURES.iter().find(|(at, signature, _)| {
        bytes
            .get(*at..)
            .is_some_and(|rest| rest.starts_with(signature))
    });
    named.map_or(ImageError::NotAnImage, |(_, _, name)| {
        ImageError::Format(name)
    })
}

fn decode_png(bytes: &[u8]) -> Result<(DynamicImage, Orientation), ImageError> {
    let limits = png::Limits {
        bytes: PNG_BYTES_MAX,
    };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    // Texts and profiles may be made to inflate to anything.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    let (width, height) = decoder.read_header_info().map_err(png_refusal)?.size();
    // The most that it may come to; how much it is stands in later chunks.
    check_size(width, height, 0)?;
    let mut reader = decoder.read_info().map_err(png_refusal)?;
    let length = reader.output_buffer_size().unwrap_or(usize::MAX);
    check_size(width, height, length as u64)?;
    let (colour, _) = reader.output_color_type();
    let exif = reader.info().exif_metadata.as_deref();
    let orientation = exif
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms);
    let mut pixels = vec![0; length];
    reader.next_frame(&mut pixels).map_err(png_refusal)?;
    let image = match colour {
        ColorType::Grayscale => {
            ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
        }
        ColorType::GrayscaleAlpha => {
            ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageLumaA8)
        }
        ColorType::Rgb => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
        ColorType::Rgba => {
            ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8)
        }
        ColorType::Indexed => None,
    };
    let image = image.ok_or_else(|| broken("PNG", "a palette that cannot be applied"))?;
    Ok((image, orientation))
}

fn png_refusal(error: DecodingError) -> ImageError {
    match &error {
        DecodingError::IoError(cause) if cause.kind() == ErrorKind::UnexpectedEof => {
            ImageError::Truncated("PNG")
        }
        error => broken("PNG", &error.to_string()),
    }
}
