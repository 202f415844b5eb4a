//! Ten thousand hostile image files through the intake.
//!
//! For each of them: an error of one short line, or numbers of the right length; no
//! crash, no file that takes long, and never more memory than is stated. The files are
//! made here, from a fixed seed: what no encoder writes by `forge`, and from that by
//! mutation. A panic in a decoder fails the test, for nothing catches it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dlc::models::manifest::Manifest;
use dlc::models::prepare::{DECODED_BYTES_MAX, prepare};
use dlc::types::Rng;
use image::{DynamicImage, ImageFormat, RgbImage};

#[path = "hostile/forge.rs"]
mod forge;

use forge::{Flat, chunk, deflated, exif, png, png_header, segment};

/// Files that are mutated from the forged ones.
const MUTATED: usize = 10_000;
/// Bytes beyond those of the decoded picture: the decoder's rows and tables, the scaled
/// picture and its numbers.
const MEMORY_BESIDES: usize = 32 << 20;
/// A file takes milliseconds, the largest that are decoded a second or two; other
/// processes may hold it up.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Counts what is allocated at a time.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn manifest(name: &str, channels: usize, side: u32) -> Manifest {
    let numbers = vec!["0.5"; channels].join(", ");
    let text = format!(
        "name = \"{name}\"\narchitecture = \"torchscript\"\nweights = \"{name}.pt\"\n\
         input = {{ channels = {channels}, height = {side}, width = {side} }}\n\
         mean = [{numbers}]\nstd = [{numbers}]\nlabels = [\"a\"]\n"
    );
    Manifest::parse(text.as_bytes(), name).expect("valid")
}

/// What the intake is put through, and what it has taken at most.
struct Intake {
    manifests: [Manifest; 2],
    most_bytes: usize,
    slowest: Duration,
    accepted: usize,
    refused: usize,
}

impl Intake {
    fn new() -> Intake {
        Intake {
            manifests: [manifest("grey", 1, 28), manifest("colour", 3, 32)],
            most_bytes: 0,
            slowest: Duration::ZERO,
            accepted: 0,
            refused: 0,
        }
    }

    /// Puts `bytes` in and checks what comes out; returns the refusal's text.
    fn take(&mut self, name: &str, bytes: &[u8]) -> Option<String> {
        let which = (self.accepted + self.refused) % 2;
        self.take_for(which, name, bytes)
    }

    fn take_for(&mut self, which: usize, name: &str, bytes: &[u8]) -> Option<String> {
        let manifest = &self.manifests[which];
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let started = Instant::now();
        let result = prepare(bytes, manifest);
        let took = started.elapsed();
        let memory = MOST.load(Ordering::Relaxed) - before;
        assert!(
            memory <= DECODED_BYTES_MAX as usize + MEMORY_BESIDES,
            "{name}: {memory} bytes of memory"
        );
        assert!(took <= TIME_MAX, "{name}: {took:?}");
        self.most_bytes = self.most_bytes.max(memory);
        self.slowest = self.slowest.max(took);
        match result {
            Ok(numbers) => {
                assert_eq!(numbers.len(), manifest.input.len(), "{name}");
                assert!(numbers.iter().all(|number| number.is_finite()), "{name}");
                self.accepted += 1;
                None
            }
            Err(refusal) => {
                let text = refusal.to_string();
                let short = (10..160).contains(&text.chars().count());
                assert!(
                    short && !text.contains(['\n', '\r', '"']),
                    "{name}: {text:?}"
                );
                self.refused += 1;
                Some(text)
            }
        }
    }
}

/// A PNG whose pixels are all 0.
fn black(width: u32, height: u32, depth: u8, colour: u8, interlaced: bool) -> Vec<u8> {
    let channels = [1, 0, 3, 1, 2, 0, 4][usize::from(colour)];
    let row = |width: u32| (width as usize * channels * usize::from(depth)).div_ceil(8) + 1;
    let length = if interlaced {
        // Adam7: the first column and row, and the distances between them, of each pass.
        let passes = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ];
        let sizes = passes.map(|(x, y, across, down)| {
            let columns = width.saturating_sub(x).div_ceil(across);
            let rows = height.saturating_sub(y).div_ceil(down);
            if columns == 0 {
                0
            } else {
                row(columns) * rows as usize
            }
        });
        sizes.iter().sum()
    } else {
        row(width) * height as usize
    };
    let mut chunks = vec![png_header(width, height, depth, colour, interlaced)];
    if colour == 3 {
        chunks.push(chunk(b"PLTE", &[1, 2, 3, 4, 5, 6]));
    }
    chunks.push(chunk(b"IDAT", &deflated(&vec![0; length])));
    png(&chunks)
}

fn photograph() -> RgbImage {
    RgbImage::from_fn(48, 40, |x, y| {
        image::Rgb([(x * 5) as u8, (y * 6) as u8, (x * y) as u8 ^ 0x55])
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

/// Files that are all right, of every kind that is accepted.
fn good() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut add = |name: &str, bytes| files.push((name.to_string(), bytes));
    let grey = DynamicImage::from(photograph()).into_luma8();
    for (name, format) in [("PNG", ImageFormat::Png), ("JPEG", ImageFormat::Jpeg)] {
        add(&format!("colour {name}"), encoded(photograph(), format));
        add(&format!("grey {name}"), encoded(grey.clone(), format));
    }
    for (depth, colour) in [
        (1, 0),
        (4, 0),
        (16, 0),
        (16, 2),
        (2, 3),
        (8, 3),
        (8, 4),
        (16, 6),
    ] {
        for interlaced in [false, true] {
            let name = format!("PNG of {depth} bits, type {colour}, interlaced {interlaced}");
            add(&name, black(19, 13, depth, colour, interlaced));
        }
    }
    let pixels = deflated(&[0; 72]);
    let animation = [
        png_header(8, 8, 8, 0, false),
        chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]),
        chunk(b"fcTL", &frame_control(0)),
        chunk(b"IDAT", &pixels),
        chunk(b"fcTL", &frame_control(1)),
        chunk(b"fdAT", &[&[0, 0, 0, 2], &pixels[..]].concat()),
    ];
    add("animated PNG", png(&animation));
    let turned = [
        png_header(8, 8, 8, 0, false),
        chunk(b"eXIf", &exif(6)),
        chunk(b"tEXt", b"Title\0words"),
        chunk(b"IDAT", &pixels),
    ];
    add("turned PNG", png(&turned));
    let samplings: [&[(u8, u8)]; 6] = [
        &[(1, 1), (1, 1), (1, 1)],
        &[(2, 1), (1, 1), (1, 1)],
        &[(2, 2), (1, 1), (1, 1)],
        &[(1, 2), (1, 1), (1, 1)],
        &[(2, 2)],
        &[(1, 1), (1, 1), (1, 1), (1, 1)],
    ];
    for sampling in samplings {
        for (progressive, apart) in [(false, false), (false, true), (true, false), (true, true)] {
            let values: Vec<i8> = [40, -40, 33, 50][..sampling.len()].to_vec();
            let mut flat = Flat::new(45, 35, &values);
            for (component, (across, down)) in flat.components.iter_mut().zip(sampling) {
                (component.0, component.1) = (*across, *down);
            }
            (flat.progressive, flat.apart) = (progressive, apart);
            let name = format!("JPEG {sampling:?} progressive {progressive} apart {apart}");
            add(&name, flat.encode());
        }
    }
    let mut turned = encoded(photograph(), ImageFormat::Jpeg);
    let body = [b"Exif\0\0", &exif(6)[..]].concat();
    turned.splice(2..2, segment(0xe1, &body));
    add("turned JPEG", turned);
    files
}

/// The body of an fcTL chunk: the whole of 8 x 8 pixels.
fn frame_control(number: u8) -> [u8; 26] {
    let mut body = [0; 26];
    (body[3], body[7], body[11], body[23]) = (number, 8, 8, 10);
    body
}

/// What each file must be refused for.
fn refused() -> Vec<(String, Vec<u8>, &'static str)> {
    let mut files: Vec<(String, Vec<u8>, &'static str)> = Vec::new();
    let mut add = |name: &str, bytes: &[u8], reason| {
        files.push((name.to_string(), bytes.to_vec(), reason));
    };
    add("nothing", b"", "empty");
    add(
        "text",
        b"not at all an image, whatever its name",
        "not an image",
    );
    add("GIF", b"GIF89a\x01\0\x01\0\0\0\0;", "GIF");
    add(
        "animated WebP",
        b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\x02",
        "WebP",
    );
    add("BMP", b"BM\x1a\0\0\0\0\0\0\0", "BMP");
    add("TIFF", b"II*\0\x08\0\0\0", "TIFF");
    add("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC");
    for (width, height) in [(30_000, 30_000), (65_535, 1), (1, 65_535), (16_384, 4_097)] {
        let name = format!("{width}x{height}");
        let header = png(&[png_header(width, height, 1, 0, false)]);
        add(&name, &header, "too many");
        let jpeg = Flat::new(16, 16, &[0]).encode();
        add(
            &name,
            &resized(jpeg, width as u16, height as u16),
            "too many",
        );
    }
    add(
        "PNG of no size",
        &png(&[png_header(0, 5, 8, 0, false)]),
        "PNG",
    );
    add(
        "JPEG of no size",
        &resized(Flat::new(8, 8, &[0]).encode(), 0, 5),
        "JPEG",
    );
    for (name, bytes) in good() {
        add(&format!("{name}, cut"), &bytes[..bytes.len() * 3 / 5], "");
    }
    let mut progressive = Flat::new(16, 16, &[0, 0, 0]);
    (progressive.progressive, progressive.refinements) = (true, 100);
    add("scan after scan", &progressive.encode(), "scans");
    let mut segments = vec![0xff, 0xd8];
    for _ in 0..5000 {
        segments.extend(segment(0xfe, b""));
    }
    add("comment after comment", &segments, "segments");
    // 6 + 4 bytes a pixel of these.
    let large = resized(
        Flat {
            progressive: true,
            ..Flat::new(8, 8, &[0, 0, 0])
        }
        .encode(),
        6000,
        5000,
    );
    add("large progressive JPEG", &large, "too many");
    let apart = resized(
        Flat {
            apart: true,
            ..Flat::new(8, 8, &[0, 0, 0])
        }
        .encode(),
        6000,
        5000,
    );
    add("large JPEG, component by component", &apart, "too many");
    for marker in [0xc3, 0xc5, 0xc9, 0xca, 0xcb] {
        let mut other = Flat::new(8, 8, &[0]).encode();
        let at = frame_at(&other);
        other[at + 1] = marker;
        add(
            &format!("JPEG with frame {marker:x}"),
            &other,
            "not supported",
        );
    }
    add(
        "JPEG with two components",
        &Flat::new(8, 8, &[0, 0]).encode(),
        "not supported",
    );
    files
}

/// Where the frame header of a JPEG file begins.
fn frame_at(bytes: &[u8]) -> usize {
    let frame = |pair: &[u8]| pair[0] == 0xff && matches!(pair[1], 0xc0 | 0xc2);
    bytes.windows(2).position(frame).expect("a frame")
}

/// A JPEG whose header claims another size.
fn resized(mut bytes: Vec<u8>, width: u16, height: u16) -> Vec<u8> {
    let at = frame_at(&bytes);
    bytes[at + 5..at + 7].copy_from_slice(&height.to_be_bytes());
    bytes[at + 7..at + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// Files that take as much memory or time as the bounds allow, or try to take more.
fn heavy() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut add = |name: &str, bytes| files.push((name.to_string(), bytes));
    let bomb = deflated(&vec![0; 300 << 20]);
    let header = || png_header(8, 8, 8, 2, false);
    let pixels = chunk(b"IDAT", &deflated(&[0; 200]));
    add(
        "PNG with 300 MiB for 8x8 pixels",
        png(&[header(), chunk(b"IDAT", &bomb)]),
    );
    for (kind, head) in [
        (b"iCCP", &b"name\0\0"[..]),
        (b"zTXt", b"name\0\0"),
        (b"iTXt", b"name\0\x01\0\0\0"),
    ] {
        let inflating = chunk(kind, &[head, &bomb].concat());
        let name = format!("PNG with 300 MiB of {}", String::from_utf8_lossy(kind));
        add(&name, png(&[header(), inflating, pixels.clone()]));
    }
    add("PNG of 64 megapixels", black(16_384, 4096, 8, 6, false));
    add(
        "interlaced PNG of 64 megapixels",
        black(8192, 8192, 1, 0, true),
    );
    let large = |width, height, components: usize, sampling: (u8, u8)| {
        let mut flat = Flat::new(8, 8, &[0; 4][..components]);
        flat.components[0].0 = sampling.0;
        flat.components[0].1 = sampling.1;
        Flat {
            width,
            height,
            ..flat
        }
    };
    add(
        "JPEG of 64 megapixels",
        large(8192, 8192, 1, (1, 1)).encode(),
    );
    let mut progressive = large(5200, 5000, 3, (1, 1));
    (progressive.progressive, progressive.refinements) = (true, 30);
    add(
        "progressive JPEG of 26 megapixels, 32 scans",
        progressive.encode(),
    );
    let mut apart = large(5000, 4500, 4, (1, 1));
    apart.apart = true;
    add(
        "CMYK JPEG of 22 megapixels, component by component",
        apart.encode(),
    );
    let mut sampled = large(5000, 4000, 3, (4, 4));
    sampled.progressive = true;
    add("progressive JPEG, colours sampled by 4", sampled.encode());
    for (width, height) in [(1, 16_384), (16_384, 1)] {
        let mut strip = large(width, height, 3, (2, 2));
        add("strip", strip.encode());
        strip.progressive = true;
        add("progressive strip", strip.encode());
    }
    files
}

/// One file made of others by chance.
fn mutate(files: &[(String, Vec<u8>)], rng: &mut Rng) -> (String, Vec<u8>) {
    let pick = |rng: &mut Rng| &files[rng.below(files.len() as u64) as usize];
    let (name, original) = pick(rng);
    let mut bytes = original.clone();
    for _ in 0..=rng.below(4) {
        let length = bytes.len() as u64;
        if length < 8 {
            break;
        }
        let at = rng.below(length) as usize;
        let run = (rng.below(24) as usize).min(bytes.len() - at);
        match rng.below(8) {
            0 => bytes[at] = rng.next_u64() as u8,
            1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = [0x00, 0xff, 0x7f, 0x80][rng.below(4) as usize],
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + run)),
            5 => {
                let copy = bytes[at..at + run].to_vec();
                bytes.splice(at..at, copy);
            }
            6 => {
                let other = &pick(rng).1;
                let from = rng.below(other.len() as u64) as usize;
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => bytes[at..at + run].fill_with(|| rng.next_u64() as u8),
        }
    }
    if rng.chance(70) {
        mend_checksums(&mut bytes);
    }
    (name.clone(), bytes)
}

/// Gives the chunks of a PNG file their right checksums, so that what was done to them
/// comes to be read.
fn mend_checksums(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(&[a, b, c, d]) = bytes.get(at..at + 4) {
        let end = (at + 8).saturating_add(u32::from_be_bytes([a, b, c, d]) as usize);
        if !bytes.starts_with(b"\x89PNG") || end.saturating_add(4) > bytes.len() {
            return;
        }
        let checksum = crc32fast::hash(&bytes[at + 4..end]);
        bytes[end..end + 4].copy_from_slice(&checksum.to_be_bytes());
        at = end + 4;
    }
}

// One test, because it counts what the process allocates.
#[test]
fn hostile_files_get_an_error_or_numbers_within_bounded_memory_and_time() {
    let mut intake = Intake::new();
    let good = good();
    for (name, bytes) in &good {
        for which in [0, 1] {
            let refusal = intake.take_for(which, name, bytes);
            assert_eq!(refusal, None, "{name}");
        }
    }
    for (name, bytes, reason) in refused() {
        let refusal = intake.take(&name, &bytes);
        let text = refusal.unwrap_or_else(|| panic!("{name}: accepted"));
        assert!(text.contains(reason), "{name}: {text}");
    }
    for (name, bytes) in heavy() {
        let started = Instant::now();
        let refusal = intake.take_for(1, &name, &bytes);
        let took = started.elapsed();
        println!("{name}, {} bytes: {took:?}, {refusal:?}", bytes.len());
    }
    let mut rng = Rng::new(20_261_124);
    for number in 0..MUTATED {
        let (name, bytes) = mutate(&good, &mut rng);
        intake.take(&format!("mutation {number} of {name}"), &bytes);
    }
    println!(
        "{} files accepted, {} refused; at most {} MiB and {:?} for one",
        intake.accepted,
        intake.refused,
        intake.most_bytes >> 20,
        intake.slowest
    );
}
