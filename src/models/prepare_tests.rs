//! Tests of `prepare`.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};

use super::*;

#[path = "../../tests/hostile/forge.rs"]
mod forge;

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
    f32::from(byte) * (1.0 / (255.0 * 0.25)) - 0.5 / 0.25
}

#[test]
fn numbers_are_those_of_the_definition_but_for_rounding() {
    let bytes: Vec<u8> = (0..=255).collect();
    let numbers = normalise(&bytes, &[0.485], &[0.229]);
    for (byte, number) in bytes.iter().zip(numbers) {
        let defined = (f32::from(*byte) / 255.0 - 0.485) / 0.229;
        assert!((number - defined).abs() < 1e-6, "{byte}");
    }
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

/// A PNG whose pixels are missing.
fn png_header(depth: u8, width: u32, height: u32) -> Vec<u8> {
    let header = forge::png_header(width, height, depth, 6, false);
    forge::png(&[header, forge::chunk(b"IDAT", b"")])
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

/// A picture without symmetry, with fine and coarse detail.
fn textured(width: u32, height: u32) -> RgbImage {
    let mut rng = crate::types::Rng::new(11);
    RgbImage::from_fn(width, height, |x, y| {
        let grain = rng.below(60) as u32;
        let value = |number: u32| ((number + grain) % 256) as u8;
        Rgb([value(x * 2), value(y * 3), value(x + y)])
    })
}

fn jpeg(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
    image.write_with_encoder(encoder).expect("encoded");
    bytes
}

/// The PNG file with an EXIF block that says `orientation`.
fn turned_png(image: &DynamicImage, orientation: u8) -> Vec<u8> {
    let mut bytes = encoded(image, ImageFormat::Png);
    bytes.splice(33..33, forge::chunk(b"eXIf", &forge::exif(orientation)));
    bytes
}

/// The JPEG file with an EXIF block that says `orientation`.
fn turned_jpeg(image: &DynamicImage, orientation: u8) -> Vec<u8> {
    let mut bytes = jpeg(image);
    let body = [b"Exif\0\0", &forge::exif(orientation)[..]].concat();
    bytes.splice(2..2, forge::segment(0xe1, &body));
    bytes
}

/// The largest difference between two inputs, in steps of a byte.
fn difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    let apart = left
        .iter()
        .zip(right)
        .map(|(left, right)| (left - right).abs());
    apart.fold(0.0, f32::max) * 0.25 * 255.0
}

#[test]
fn all_eight_orientations_are_obeyed() {
    let upright = DynamicImage::from(textured(61, 40));
    // What undoes each of them.
    let back = [1, 2, 3, 4, 5, 8, 7, 6];
    let manifest = manifest(3, 17, 24, 28);
    let expected = prepare(&png(upright.clone()), &manifest).expect("accepted");
    for (orientation, back) in (1..=8).zip(back) {
        let mut stored = upright.clone();
        stored.apply_orientation(Orientation::from_exif(back).expect("1 to 8"));
        let file = turned_png(&stored, orientation);
        assert_eq!(decode(&file), Ok(upright.clone()), "{orientation}");
        let numbers = prepare(&file, &manifest).expect("accepted");
        // Rows and columns are scaled in the other order, each with a rounding of its own.
        assert!(difference(&numbers, &expected) < 1.01, "{orientation}");
        let mut turned = decode(&jpeg(&stored)).expect("accepted");
        turned.apply_orientation(Orientation::from_exif(orientation).expect("1 to 8"));
        assert_eq!(
            decode(&turned_jpeg(&stored, orientation)),
            Ok(turned),
            "{orientation}"
        );
    }
    // Nonsense is not obeyed.
    assert_eq!(decode(&turned_png(&upright, 9)), Ok(upright));
}

#[test]
fn sizes_and_margins_are_rounded_as_torchvision_rounds_them() {
    for (size, side, expected) in [
        ((500, 375), 256, (341, 256)),
        ((375, 500), 256, (256, 341)),
        ((333, 500), 256, (256, 384)),
        ((500, 333), 256, (384, 256)),
        ((100, 100), 28, (28, 28)),
        ((1, 16_384), 256, (256, 4_194_304)),
    ] {
        assert_eq!(scaled_size(size.0, size.1, side), expected);
    }
    // Python: round(0.5) = 0, round(1.5) = 2, round(2.5) = 2, round(58.5) = 58.
    for (whole, margin_expected) in [(224, 0), (225, 0), (226, 1), (227, 2), (229, 2), (341, 58)] {
        assert_eq!(margin(whole, 224), margin_expected, "{whole}");
    }
}

#[test]
fn scaling_only_the_centre_is_scaling_all_and_cutting_out_the_centre() {
    for (width, height) in [
        (61, 40),
        (40, 61),
        (27, 28),
        (90, 33),
        (29, 300),
        (28, 28),
        (7, 5),
    ] {
        let image = DynamicImage::from(textured(width, height));
        let manifest = manifest(3, 20, 23, 28);
        let (scaled_width, scaled_height) = scaled_size(width, height, 28);
        let mut whole = DynamicImage::new(scaled_width, scaled_height, image.color());
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        Resizer::new()
            .resize(&image, &mut whole, &options)
            .expect("scaled");
        let (left, top) = (margin(scaled_width, 23), margin(scaled_height, 20));
        let expected = whole.crop_imm(left, top, 23, 20).into_rgb8();
        let numbers = prepare(&png(image), &manifest).expect("accepted");
        let expected = normalise(&expected, &manifest.mean, &manifest.std);
        assert!(difference(&numbers, &expected) < 1.01, "{width}x{height}");
    }
}

#[test]
fn grey_jpegs_serve_networks_of_both_kinds() {
    let image = DynamicImage::from(DynamicImage::from(textured(28, 28)).into_luma8());
    let file = jpeg(&image);
    let pixels = decode(&file).expect("accepted");
    assert_eq!(pixels.color(), image::ColorType::L8);
    let expected: Vec<f32> = pixels.as_bytes().iter().map(|byte| value(*byte)).collect();
    assert_eq!(
        prepare(&file, &manifest(1, 28, 28, 28)),
        Ok(expected.clone())
    );
    let planes = prepare(&file, &manifest(3, 28, 28, 28)).expect("accepted");
    assert!(planes.chunks(784).all(|plane| plane == expected));
}

#[test]
fn grey_is_that_of_a_jpegs_luma() {
    let manifest = manifest(1, 28, 28, 28);
    // Even colours, since JPEG blurs them: luma alone, and luma reckoned from the colours.
    for colour in [[200, 30, 60], [10, 220, 90], [40, 50, 230]] {
        let image = DynamicImage::from(RgbImage::from_pixel(30, 40, Rgb(colour)));
        let from_jpeg = prepare(&jpeg(&image), &manifest).expect("accepted");
        let from_png = prepare(&png(image), &manifest).expect("accepted");
        assert!(difference(&from_jpeg, &from_png) < 2.01, "{colour:?}");
    }
}

#[test]
fn sixteen_bits_a_channel_lose_the_lower_eight() {
    let deep = image::ImageBuffer::from_pixel(8, 8, Rgb([0x12ff_u16, 0x8000, 0xfffe]));
    let numbers = prepare(&png(deep), &manifest(3, 8, 8, 8)).expect("accepted");
    for (plane, byte) in numbers.chunks(64).zip([0x12, 0x80, 0xff]) {
        assert_eq!(plane, [value(byte); 64]);
    }
    let grey = image::ImageBuffer::from_pixel(8, 8, Luma([0x4321_u16]));
    let numbers = prepare(&png(grey), &manifest(1, 8, 8, 8)).expect("accepted");
    assert_eq!(numbers, [value(0x43); 64]);
}

#[test]
fn palettes_are_applied_and_the_first_picture_of_an_animation_is_taken() {
    let palette = [
        forge::png_header(4, 4, 8, 3, false),
        forge::chunk(b"PLTE", &[1, 2, 3, 70, 80, 90]),
        forge::chunk(b"tRNS", &[255, 0]),
        forge::chunk(b"IDAT", &forge::deflated(&[0, 1, 1, 1, 1].repeat(4))),
    ];
    let numbers = prepare(&forge::png(&palette), &manifest(3, 4, 4, 4)).expect("accepted");
    for (plane, byte) in numbers.chunks(16).zip([70, 80, 90]) {
        assert_eq!(plane, [value(byte); 16]);
    }
    let mut control = [0; 26];
    (control[7], control[11]) = (4, 4);
    let later = forge::deflated(&[0, 200, 200, 200, 200].repeat(4));
    let animation = [
        forge::png_header(4, 4, 8, 0, false),
        forge::chunk(b"acTL", &[0, 0, 0, 1, 0, 0, 0, 0]),
        forge::chunk(b"IDAT", &forge::deflated(&[0, 9, 9, 9, 9].repeat(4))),
        forge::chunk(b"fcTL", &control),
        forge::chunk(b"fdAT", &[&[0, 0, 0, 1], &later[..]].concat()),
    ];
    let numbers = prepare(&forge::png(&animation), &manifest(1, 4, 4, 4)).expect("accepted");
    assert_eq!(numbers, [value(9); 16]);
}

#[test]
fn jpegs_of_four_components_are_ink_as_adobe_stores_it() {
    let flat = |values: &[i8], adobe| {
        let file = forge::Flat {
            adobe,
            ..forge::Flat::new(24, 16, values)
        };
        decode(&file.encode()).expect("accepted").into_rgb8()
    };
    // Stored upside down: 168 / 255 of the light that the black ink (178) leaves.
    let cmyk = flat(&[40, 0, -40, 50], Some(0));
    assert_eq!(cmyk.get_pixel(5, 5), &Rgb([117, 89, 61]));
    let ycck = flat(&[0, 0, 0, 50], Some(2));
    assert_eq!(ycck.get_pixel(5, 5), &Rgb([89, 89, 89]));
    // Three components that are not luma and chroma.
    let colours = flat(&[40, 0, -40], Some(0));
    assert_eq!(colours.get_pixel(5, 5), &Rgb([168, 128, 88]));
}

#[test]
fn progressive_and_subsampled_jpegs_are_decoded_for_networks_of_both_kinds() {
    for (progressive, sampling) in [
        (false, (1, 1)),
        (true, (1, 1)),
        (false, (2, 2)),
        (true, (2, 2)),
        (true, (2, 1)),
        (false, (1, 2)),
        (true, (1, 2)),
    ] {
        let mut flat = forge::Flat::new(45, 37, &[40, 0, 0]);
        flat.progressive = progressive;
        (flat.components[0].0, flat.components[0].1) = sampling;
        let file = flat.encode();
        for channels in [1, 3] {
            let numbers = prepare(&file, &manifest(channels, 28, 28, 28)).expect("accepted");
            let even = numbers.iter().all(|number| *number == value(168));
            assert!(even, "{progressive} {sampling:?} {channels}");
        }
    }
}

#[test]
fn a_damaged_jpeg_is_refused_and_not_painted_grey() {
    let mut file = jpeg(&textured(120, 90).into());
    let middle = file.len() / 2;
    // A marker that has no business in a scan, where the rest of the picture was.
    file[middle..middle + 4].copy_from_slice(&[0xff, 0xc4, 0x00, 0x02]);
    let refusal = decode(&file).expect_err("damaged").to_string();
    assert!(refusal.contains("JPEG"), "{refusal}");
}

#[test]
fn numbers_are_appended_and_an_error_leaves_them_alone() {
    let manifest = manifest(3, 8, 8, 8);
    let mut numbers = vec![7.0];
    prepare_into(&png(gradient(20, 10)), &manifest, &mut numbers).expect("accepted");
    assert_eq!((numbers[0], numbers.len()), (7.0, 193));
    prepare_into(b"no image", &manifest, &mut numbers).expect_err("refused");
    assert_eq!(numbers.len(), 193);
}

#[test]
fn a_jpeg_comes_to_the_same_as_its_decoded_pixels() {
    for (width, height) in [(45, 37), (64, 48), (15, 90)] {
        let file = jpeg(&textured(width, height).into());
        let pixels = png(decode(&file).expect("accepted"));
        for (channels, apart) in [(3, 1.01), (1, 3.01)] {
            let manifest = manifest(channels, 28, 28, 28);
            let numbers = prepare(&file, &manifest).expect("accepted");
            let expected = prepare(&pixels, &manifest).expect("accepted");
            let found = difference(&numbers, &expected);
            assert!(found < apart, "{width}x{height}: {found}");
        }
    }
}
