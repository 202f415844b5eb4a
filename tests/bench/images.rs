//! What preparing an image costs beside decoding it: medians of interleaved rounds.
//!
//! The first column is the decoder alone, as its own documentation calls it, without any
//! check of ours; the second all that a node does with a file. Beside the pictures that
//! are made here there are photographs, where a folder of them is found: in `$FLOWERS`,
//! `data/flowers` or `../shared/data/flowers`.

use std::hint::black_box;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dlc::models::manifest::Manifest;
use dlc::models::prepare::prepare_into;
use image::codecs::jpeg::JpegEncoder;
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;

/// Rounds; in each every file is decoded and prepared once.
const ROUNDS: usize = 400;
/// Photographs that are measured together.
const PHOTOGRAPHS: usize = 20;

/// What is measured: a name, its files, the network's input, and the bar for the ratio.
struct Case {
    name: String,
    files: Vec<Vec<u8>>,
    manifest: Manifest,
    /// None for files of whatever size.
    ratio_max: Option<f64>,
}

fn main() {
    let resnet = manifest("resnet50", 3, 224, 256);
    let lenet = manifest("lenet", 1, 28, 28);
    let case = |name: &str, files, manifest: &Manifest, ratio_max| Case {
        name: name.into(),
        files,
        manifest: manifest.clone(),
        ratio_max,
    };
    let picture = jpeg(&picture(500, 375));
    let name = format!("JPEG 500x375, {} KB", picture.len() / 1000);
    let mut cases = vec![
        case(&name, vec![picture], &resnet, Some(1.35)),
        case("PNG 28x28, grey", vec![digit()], &lenet, Some(1.2)),
    ];
    let photographs = photographs();
    if photographs.is_empty() {
        println!("photographs: skipped, for there are none; name their folder in FLOWERS");
    } else {
        let name = format!("{} photographs", photographs.len());
        cases.insert(1, case(&name, photographs, &resnet, None));
    }
    println!(
        "{:<24}{:>12}{:>12}{:>8}{:>8}",
        "file", "decode", "prepare", "ratio", "bar"
    );
    for case in &cases {
        let (decoded, prepared) = measure(case);
        let microseconds = |span: Duration| span.as_secs_f64() * 1e6;
        let bar = case.ratio_max.map(|ratio| format!("{ratio:.2}"));
        println!(
            "{:<24}{:>9.1} us{:>9.1} us{:>8.2}{:>8}",
            case.name,
            microseconds(decoded),
            microseconds(prepared),
            microseconds(prepared) / microseconds(decoded),
            bar.as_deref().unwrap_or("-")
        );
    }
}

fn manifest(name: &str, channels: usize, side: u32, resize: u32) -> Manifest {
    let numbers = |number: &str| vec![number; channels].join(", ");
    let text = format!(
        "name = \"{name}\"\narchitecture = \"torchscript\"\nweights = \"{name}.pt\"\n\
         input = {{ channels = {channels}, height = {side}, width = {side}, resize = {resize} }}\n\
         mean = [{}]\nstd = [{}]\nlabels = [\"a\"]\n",
        numbers("0.45"),
        numbers("0.225")
    );
    Manifest::parse(text.as_bytes(), name).expect("valid")
}

/// Medians over the rounds of the time for one file: decoding alone, and preparing it.
fn measure(case: &Case) -> (Duration, Duration) {
    let files = case.files.len() as u32;
    let rounds = ROUNDS.div_ceil(case.files.len()).max(40) * if files == 1 { 5 } else { 1 };
    let mut numbers = Vec::new();
    let mut decoded = Vec::new();
    let mut prepared = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        for file in &case.files {
            black_box(decode_alone(black_box(file)));
        }
        decoded.push(started.elapsed() / files);
        let started = Instant::now();
        for file in &case.files {
            numbers.clear();
            prepare_into(black_box(file), &case.manifest, &mut numbers).expect("a good file");
            black_box(&numbers);
        }
        prepared.push(started.elapsed() / files);
    }
    decoded.sort();
    prepared.sort();
    (decoded[rounds / 2], prepared[rounds / 2])
}

/// The pixels, by nothing but the decoder.
fn decode_alone(bytes: &[u8]) -> Vec<u8> {
    if bytes.starts_with(b"\xff\xd8") {
        return JpegDecoder::new(ZCursor::new(bytes))
            .decode()
            .expect("a JPEG");
    }
    let mut reader = png::Decoder::new(Cursor::new(bytes))
        .read_info()
        .expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    reader.next_frame(&mut pixels).expect("pixels");
    pixels
}

fn jpeg(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 88)
        .encode_image(picture)
        .expect("encoded");
    bytes
}

/// Noise of several grains over slopes: it compresses about as well as a photograph.
fn picture(width: u32, height: u32) -> RgbImage {
    let noise = |x: u32, y: u32, grain: u32| {
        let corner = |x: u32, y: u32| {
            let mixed = (x.wrapping_mul(0x9e37_79b1) ^ y.wrapping_mul(0x85eb_ca77)) + grain;
            let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x2c1b_3c6d);
            f64::from((mixed ^ mixed >> 13) & 255)
        };
        let (left, top) = (x / grain, y / grain);
        let across = f64::from(x % grain) / f64::from(grain);
        let down = f64::from(y % grain) / f64::from(grain);
        let row = |y| corner(left, y) * (1.0 - across) + corner(left + 1, y) * across;
        row(top) * (1.0 - down) + row(top + 1) * down
    };
    RgbImage::from_fn(width, height, |x, y| {
        let texture = noise(x, y, 64) * 0.6 + noise(x, y, 16) * 0.25 + noise(x, y, 3) * 0.15;
        let slope = f64::from(x + y) * 0.1;
        Rgb([texture, texture * 0.7 + slope, 200.0 - texture * 0.5].map(|value| value as u8))
    })
}

/// A blurred ring on black, as a handwritten nought would be.
fn digit() -> Vec<u8> {
    let image = GrayImage::from_fn(28, 28, |x, y| {
        let radius = (f64::from(x) - 13.5).hypot((f64::from(y) - 13.5) * 0.8);
        Luma([(255.0 - (radius - 7.0).abs() * 110.0).max(0.0) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .expect("encoded");
    bytes.into_inner()
}

/// Some photographs of the first folder of them that is found.
fn photographs() -> Vec<Vec<u8>> {
    let named = std::env::var_os("FLOWERS").map(PathBuf::from);
    let usual = ["data/flowers", "../shared/data/flowers"].map(PathBuf::from);
    let folders = named.into_iter().chain(usual);
    let mut paths = folders
        .map(|folder| photographs_under(&folder))
        .find(|paths| !paths.is_empty())
        .unwrap_or_default();
    paths.sort();
    let step = paths.len().div_ceil(PHOTOGRAPHS).max(1);
    let files = paths.iter().step_by(step).map(std::fs::read);
    files.filter_map(Result::ok).collect()
}

/// The JPEG files in the folders of `folder`.
fn photographs_under(folder: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries(folder)
        .flat_map(|class| entries(&class.path()).map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .collect()
}
