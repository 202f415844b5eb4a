//! Tests of `prepare`.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};

use super::*;

fn manifest(channels: u32, height: u32, width: u32, resize: u32) -> Manifest {
    let numbers = |number: &str| vec![number; channels as usize].join(", ");
    let text = format!(
        "name = \"net\"\narchitecture = \"torchscript\"\nweights = \"net.pt\"\n\
         input = {{ channels = {channels}, height = {height}, width = {width}, resize = {resize} }}\n\
         mean = [{}]\nstd = [{}]\nlabels = [\"a\"]\n",
        numbers("0.5"),
        numbers("0.25")
    );
    Manifest::parse(text.as_bytes(), "net.toml").expect("valid")
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    encoded(&image.into(), ImageFormat::Png)
}

fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 90])
    })
}

fn value(byte: u8) -> f32 {
    (f32::from(byte) / 255.0 - 0.5) / 0.25
}

#[test]
fn a_grey_image_of_the_right_size_is_taken_unscaled() {
    let image = GrayImage::from_fn(28, 28, |x, y| Luma([(x * 9 + y) as u8]));
    let numbers = prepare(&png(image.clone()), &manifest(1, 28, 28, 28)).expect("accepted");
    let expected: Vec<f32> = image.iter().map(|byte| value(*byte)).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn colours_become_planes_in_the_order_red_green_blue() {
    let image = RgbImage::from_pixel(4, 4, Rgb([10, 20, 30]));
    let numbers = prepare(&png(image), &manifest(3, 4, 4, 4)).expect("accepted");
    for (plane, byte) in numbers.chunks(16).zip([10, 20, 30]) {
        assert_eq!(plane, [value(byte); 16]);
    }
}

#[test]
fn colour_is_turned_to_grey_and_grey_to_colour_and_alpha_is_dropped() {
    let colour = RgbImage::from_pixel(28, 28, Rgb([200, 200, 200]));
    let numbers = prepare(&png(colour), &manifest(1, 28, 28, 28)).expect("accepted");
    assert_eq!(numbers, [value(200); 784]);
    let grey = GrayImage::from_pixel(8, 8, Luma([50]));
    let numbers = prepare(&png(grey), &manifest(3, 8, 8, 8)).expect("accepted");
    assert_eq!(numbers, [value(50); 192]);
    let alpha = RgbaImage::from_pixel(8, 8, Rgba([50, 50, 50, 0]));
    let numbers = prepare(&png(alpha), &manifest(3, 8, 8, 8)).expect("accepted");
    assert_eq!(numbers, [value(50); 192]);
}

#[test]
fn the_shorter_side_is_scaled_and_the_centre_is_cut_out() {
    // Halves of the picture: left black, right white; the crop's seam is in its middle.
    let image = GrayImage::from_fn(80, 40, |x, _| Luma([if x < 40 { 0 } else { 255 }]));
    let numbers = prepare(&png(image), &manifest(1, 10, 10, 20)).expect("accepted");
    for row in numbers.chunks(10) {
        assert_eq!(row[..4], [value(0); 4]);
        assert_eq!(row[6..], [value(255); 4]);
    }
}

#[test]
fn photographs_and_strips_reach_the_networks_shape() {
    let manifest = manifest(3, 224, 224, 256);
    let mut photograph = Vec::new();
    JpegEncoder::new_with_quality(&mut photograph, 90)
        .encode_image(&gradient(500, 375))
        .expect("encoded");
    let numbers = prepare(&photograph, &manifest).expect("accepted");
    assert_eq!(numbers.len(), manifest.input.len());
    for (width, height) in [(1, 1), (1, 16_384), (16_384, 1), (2000, 30)] {
        let numbers = prepare(&png(gradient(width, height)), &manifest).expect("accepted");
        assert_eq!(numbers.len(), manifest.input.len(), "{width}x{height}");
    }
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let manifest = manifest(3, 8, 8, 8);
    let cases: [(&[u8], &str); 5] = [
        (b"", "empty"),
        (b"this is a text file named .png", "not an image"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00", "GIF"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
    ];
    for (bytes, expected) in cases {
        let refusal = prepare(bytes, &manifest).expect_err(expected).to_string();
        assert!(refusal.contains(expected), "{refusal}");
        assert!(
            refusal.len() < 160 && !refusal.contains('\n'),
            "{refusal:?}"
        );
    }
}

#[test]
fn every_truncation_is_refused() {
    let manifest = manifest(3, 64, 64, 64);
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg)
        .encode_image(&gradient(200, 150))
        .expect("encoded");
    assert!(prepare(&jpeg, &manifest).is_ok());
    for kept in (2..jpeg.len()).step_by(7) {
        assert!(
            prepare(&jpeg[..kept], &manifest).is_err(),
            "{kept} bytes of JPEG"
        );
    }
    let half = prepare(&jpeg[..jpeg.len() / 2], &manifest).expect_err("half a picture");
    assert_eq!(half, ImageError::Truncated("JPEG"));
    let png = png(gradient(200, 150));
    let half = prepare(&png[..png.len() / 2], &manifest).expect_err("half a picture");
    assert_eq!(half, ImageError::Truncated("PNG"));
}

#[test]
fn bytes_after_the_end_of_the_picture_do_no_harm() {
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg)
        .encode_image(&gradient(40, 30))
        .expect("encoded");
    jpeg.extend(b"\r\n\r\n");
    assert!(prepare(&jpeg, &manifest(3, 8, 8, 8)).is_ok());
}

/// A PNG of `width` x `height` with `depth` bits a channel, whose pixels are missing: only its header is real.
fn png_header(depth: u8, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], body: &[u8]| {
        bytes.extend((body.len() as u32).to_be_bytes());
        let from = bytes.len();
        bytes.extend(kind);
        bytes.extend(body);
        let checksum = crc32fast::hash(&bytes[from..]);
        bytes.extend(checksum.to_be_bytes());
    };
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([depth, 6, 0, 0, 0]);
    chunk(b"IHDR", &header);
    chunk(b"IDAT", &[]);
    bytes
}

#[test]
fn a_bomb_is_refused_by_its_header() {
    let manifest = manifest(3, 8, 8, 8);
    for (width, height) in [(30_000, 30_000), (16_385, 1), (1, 16_385), (16_384, 8192)] {
        let refusal = prepare(&png_header(8, width, height), &manifest).expect_err("a bomb");
        assert_eq!(refusal, ImageError::TooLarge { width, height });
    }
    let (width, height) = (8192, 8192);
    let within = prepare(&png_header(8, width, height), &manifest).expect_err("no pixels");
    assert_ne!(within, ImageError::TooLarge { width, height });
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg)
        .encode_image(&gradient(16, 16))
        .expect("encoded");
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .expect("a baseline frame");
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x75, 0x30, 0x75, 0x30]);
    let refusal = prepare(&jpeg, &manifest).expect_err("a bomb");
    let (width, height) = (30_000, 30_000);
    assert_eq!(refusal, ImageError::TooLarge { width, height });
}

#[test]
fn mutated_files_never_panic() {
    let manifest = manifest(3, 16, 16, 16);
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg)
        .encode_image(&gradient(60, 40))
        .expect("encoded");
    let mut rng = crate::types::Rng::new(7);
    for original in [jpeg, png(gradient(60, 40))] {
        for _ in 0..500 {
            let mut bytes = original.clone();
            for _ in 0..=rng.below(8) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
            match prepare(&bytes, &manifest) {
                Ok(numbers) => assert_eq!(numbers.len(), manifest.input.len()),
                Err(refusal) => assert!(!refusal.to_string().contains('\n')),
            }
        }
    }
}
