//! JPEG: what a file announces, and its pixels.
//!
//! Decides: which JPEG streams are decoded (baseline and progressive, 8 bits, 1, 3 or 4
//! components; CMYK and YCCK as Adobe writes them, which is how everybody does), that
//! memory and work are known before a pixel is decoded, and that a damaged stream is
//! refused and not painted grey. Leaves to others: turning the picture upright.
//!
//! A survey of ours goes first, because the decoder neither counts what it will allocate
//! nor the work that a stream can make it do. The survey is stricter than the decoder
//! about what stands between segments, so that both see the same ones.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Colours, ImageError, broken, check_size};

/// Most scans of a picture; a progressive one has about 10, of four components 18. Each
/// scan visits every block, so a small file could cost hours without this.
const SCANS_MAX: usize = 32;
/// Most segments of a file. The decoder goes through all that it has seen of one kind
/// each time that another comes, so their number must not grow with the file.
const SEGMENTS_MAX: usize = 2048;
/// Rows and columns of a block of coefficients.
const BLOCK: u64 = 8;

/// What a file announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    width: u32,
    height: u32,
    components: u8,
    progressive: bool,
    /// Largest sampling factors: blocks in a unit of the stream.
    sampling: (u64, u64),
    /// Bytes of the coefficients of all components, where they must be held as a whole.
    coefficient_bytes: u64,
}

/// Pixels as they are stored, and how EXIF says that they must be turned.
pub(super) fn decode(
    bytes: &[u8],
    colours: Colours,
) -> Result<(DynamicImage, Orientation), ImageError> {
    let frame = survey(bytes)?;
    // What most files come to. The decoder chooses how it turns colours when it reads the
    // headers, so one that was told wrong is begun again.
    let usual = match colours {
        _ if frame.components == 1 => ColorSpace::Luma,
        Colours::Grey if frame.components == 3 => ColorSpace::Luma,
        Colours::Padded if frame.components == 3 => ColorSpace::RGBA,
        _ => ColorSpace::RGB,
    };
    let mut decoder = open(bytes, &frame, usual)?;
    let output = output(&frame, decoder.input_colorspace(), colours);
    if output != usual {
        decoder = open(bytes, &frame, output)?;
    }
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let pixels = decoder.decode().map_err(refusal)?;
    let (width, height) = (frame.width, frame.height);
    let image = match output {
        ColorSpace::Luma => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        ColorSpace::RGBA => RgbaImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    // Fewer pixels than the frame has: the decoder took another one for it.
    let image = image.ok_or_else(|| broken("JPEG", "two frames"))?;
    Ok((image, orientation))
}

/// A decoder that has read the headers. Its own limits hold it to the frame that was
/// surveyed.
fn open<'a>(
    bytes: &'a [u8],
    frame: &Frame,
    output: ColorSpace,
) -> Result<JpegDecoder<ZCursor<&'a [u8]>>, ImageError> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(frame.width as usize)
        .set_max_height(frame.height as usize)
        .jpeg_set_max_scans(SCANS_MAX)
        .jpeg_set_out_colorspace(output);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(refusal)?;
    Ok(decoder)
}

/// What pixels of `input` are turned to.
fn output(frame: &Frame, input: Option<ColorSpace>, colours: Colours) -> ColorSpace {
    match (input, colours) {
        (Some(ColorSpace::Luma), _) => ColorSpace::Luma,
        // Luma is the grey of ITU-R BT.601: the colours need not be decoded. Other
        // samplings are so rare that the decoder's way to luma alone is not relied on.
        (Some(ColorSpace::YCbCr), Colours::Grey)
            if matches!(frame.sampling, (1, 1) | (2, 1) | (2, 2)) =>
        {
            ColorSpace::Luma
        }
        (Some(ColorSpace::YCbCr), Colours::Padded) => ColorSpace::RGBA,
        _ => ColorSpace::RGB,
    }
}

fn refusal(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => ImageError::Truncated("JPEG"),
        DecodeErrors::FormatStatic(words) if words.starts_with("Premature end") => {
            ImageError::Truncated("JPEG")
        }
        error => broken("JPEG", &error.to_string()),
    }
}

/// Reads all segments up to the end of the image.
///
/// *Errors*: whatever is refused before a pixel is decoded, and a file that ends early.
///
/// *Source*: ITU-T T.81, annex B: segments carry their length; in entropy-coded data
/// 0xFF is followed by 0x00, by a restart marker, or by the next segment's marker.
fn survey(bytes: &[u8]) -> Result<Frame, ImageError> {
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let (mut frame, mut scans, mut at) = (None::<Frame>, 0, 2);
    // Whether one scan has the whole picture.
    let mut complete = false;
    for _ in 0..SEGMENTS_MAX {
        let (marker, body) = if scans == 0 {
            header_marker(bytes, at)?
        } else {
            scan_marker(bytes, at)?
        };
        if marker == END_OF_IMAGE && scans > 0 {
            return frame.ok_or_else(|| broken("JPEG", "no frame"));
        }
        if complete {
            // The decoder would leave black what this segment takes the place of.
            return Err(broken("JPEG", "a segment within the picture"));
        }
        let segment = segment(bytes, body)?;
        at = body + 2 + segment.len();
        match (marker, &frame) {
            // The decoder refuses a second frame.
            (0xc0..=0xcf, None) if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                let found = read_frame(marker, segment)?;
                check_bytes(&found, 0)?;
                frame = Some(found);
            }
            (START_OF_SCAN, None) => return Err(broken("JPEG", "no frame")),
            (START_OF_SCAN, Some(frame)) => {
                scans += 1;
                let all = segment.first() == Some(&frame.components);
                complete = scans == 1 && all && !frame.progressive;
                if !complete {
                    check_bytes(frame, frame.coefficient_bytes)?;
                }
                if scans > SCANS_MAX {
                    return Err(broken("JPEG", "too many scans"));
                }
            }
            _ => {}
        }
    }
    Err(broken("JPEG", "too many segments"))
}

/// The marker at `at`, and where what follows it begins.
fn header_marker(bytes: &[u8], at: usize) -> Result<(u8, usize), ImageError> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some(fill) = rest.iter().position(|byte| *byte != 0xff) else {
        return Err(ImageError::Truncated("JPEG"));
    };
    match rest[fill] {
        // Markers that stand alone are for scans.
        0x00 | 0x01 | 0xd0..=0xd9 => Err(broken("JPEG", "no picture in it")),
        marker if fill > 0 => Ok((marker, at + fill + 1)),
        _ => Err(broken("JPEG", "stray bytes between segments")),
    }
}

/// The next marker after the entropy-coded data at `at`, and where what follows it begins.
fn scan_marker(bytes: &[u8], mut at: usize) -> Result<(u8, usize), ImageError> {
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let found = rest.iter().position(|byte| *byte == 0xff);
        let at_marker = at + found.ok_or(ImageError::Truncated("JPEG"))? + 1;
        match bytes.get(at_marker) {
            None => return Err(ImageError::Truncated("JPEG")),
            Some(0xff) => at = at_marker,
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at = at_marker + 1,
            Some(marker) => return Ok((*marker, at_marker + 1)),
        }
    }
}

/// The segment whose length stands at `at`, without its length.
fn segment(bytes: &[u8], at: usize) -> Result<&[u8], ImageError> {
    let Some(&[high, low]) = bytes.get(at..at + 2) else {
        return Err(ImageError::Truncated("JPEG"));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < 2 {
        return Err(broken("JPEG", "a segment without length"));
    }
    bytes
        .get(at + 2..at + length)
        .ok_or(ImageError::Truncated("JPEG"))
}

/// Reads a frame header.
fn read_frame(marker: u8, segment: &[u8]) -> Result<Frame, ImageError> {
    let refused = |what| Err(ImageError::Variant(what));
    match marker {
        0xc0..=0xc2 => {}
        0xc3 => return refused("lossless JPEG"),
        0xc5..=0xc7 => return refused("hierarchical JPEG"),
        _ => return refused("JPEG with arithmetic coding"),
    }
    let [precision, h1, h0, w1, w0, components, factors @ ..] = segment else {
        return Err(broken("JPEG", "a frame header too short"));
    };
    if *precision != 8 {
        return refused("JPEG with other than 8 bits a channel");
    }
    if !matches!(components, 1 | 3 | 4) {
        return refused("JPEG with other than 1, 3 or 4 channels");
    }
    let (factors, _) = factors.as_chunks::<3>();
    if factors.len() != usize::from(*components) {
        return Err(broken("JPEG", "a frame header of the wrong length"));
    }
    let sampling = |factor: &[u8; 3]| (u64::from(factor[1] >> 4), u64::from(factor[1] & 15));
    let across = factors.iter().map(|factor| sampling(factor).0).max();
    let down = factors.iter().map(|factor| sampling(factor).1).max();
    let (across, down) = (across.unwrap_or(0), down.unwrap_or(0));
    if across == 0 || down == 0 {
        return Err(broken("JPEG", "a sampling factor of 0"));
    }
    let width = u16::from_be_bytes([*w1, *w0]).into();
    let height = u16::from_be_bytes([*h1, *h0]).into();
    let units =
        u64::from(width).div_ceil(BLOCK * across) * u64::from(height).div_ceil(BLOCK * down);
    let blocks: u64 = factors.iter().map(|f| sampling(f).0 * sampling(f).1).sum();
    Ok(Frame {
        width,
        height,
        components: *components,
        progressive: marker == 0xc2,
        sampling: (across, down),
        coefficient_bytes: units * blocks * BLOCK * BLOCK * size_of::<i16>() as u64,
    })
}

/// Refuses a frame whose pixels, and `more` bytes, are too many.
fn check_bytes(frame: &Frame, more: u64) -> Result<(), ImageError> {
    let channels = match frame.components {
        1 => 1,
        3 => 4,
        _ => 3,
    };
    let pixels = u64::from(frame.width) * u64::from(frame.height) * channels;
    check_size(frame.width, frame.height, pixels + more)
}
