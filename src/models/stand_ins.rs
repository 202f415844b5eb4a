//! Drawings that stand in for photographs of flowers where there are none.
//!
//! Decides: five kinds of simple drawings under the names of the flowers data set, the
//! same ones every time. They keep the demonstration running without the data set; no
//! network learnt from them or is judged by them. Leaves to others: saying so.

use std::f32::consts::TAU;

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

use crate::types::Rng;

/// Size of a drawing, in pixels.
const SIZE: (u32, u32) = (320, 240);
/// Quality of the files, of 100.
const QUALITY: u8 = 90;

/// How a kind of flower is drawn.
struct Kind {
    name: &'static str,
    petals: f32,
    /// How far the petals stand out, as a share of the radius.
    depth: f32,
    petal: [f32; 3],
    centre: [f32; 3],
    /// Radius of the centre, as a share of the whole.
    middle: f32,
}

const fn kind(
    name: &'static str,
    (petals, depth, middle): (f32, f32, f32),
    petal: [f32; 3],
    centre: [f32; 3],
) -> Kind {
    Kind {
        name,
        petals,
        depth,
        petal,
        centre,
        middle,
    }
}

const KINDS: [Kind; 5] = [
    kind(
        "daisy",
        (14.0, 0.25, 0.3),
        [245.0, 245.0, 240.0],
        [240.0, 200.0, 40.0],
    ),
    kind(
        "dandelion",
        (40.0, 0.1, 0.6),
        [250.0, 215.0, 30.0],
        [240.0, 190.0, 20.0],
    ),
    kind(
        "roses",
        (5.0, 0.08, 0.5),
        [200.0, 30.0, 60.0],
        [140.0, 10.0, 30.0],
    ),
    kind(
        "sunflowers",
        (22.0, 0.2, 0.5),
        [250.0, 190.0, 20.0],
        [90.0, 50.0, 20.0],
    ),
    kind(
        "tulips",
        (3.0, 0.35, 0.2),
        [230.0, 80.0, 150.0],
        [250.0, 160.0, 60.0],
    ),
];

/// Drawing `number`: the name of its kind, and a JPEG file.
pub fn drawing(number: usize) -> (&'static str, Vec<u8>) {
    let kind = &KINDS[number % KINDS.len()];
    let mut rng = Rng::new(number as u64);
    let mut share = || (rng.next_u64() >> 40) as f32 / (1u64 << 24) as f32;
    let (width, height) = (SIZE.0 as f32, SIZE.1 as f32);
    let radius = height * (0.25 + 0.2 * share());
    let (left, top) = (
        width * (0.35 + 0.3 * share()),
        height * (0.4 + 0.2 * share()),
    );
    let turn = TAU * share();
    let background = [
        40.0 + 60.0 * share(),
        90.0 + 60.0 * share(),
        40.0 + 40.0 * share(),
    ];
    let image = RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| {
        let (right, down) = (x as f32 - left, y as f32 - top);
        let wave = (kind.petals * (down.atan2(right) + turn)).cos();
        let distance = right.hypot(down) / radius / (1.0 + kind.depth * wave);
        let colour = match distance {
            distance if distance < kind.middle => kind.centre,
            distance if distance < 1.0 => kind.petal,
            _ => background,
        };
        // Darker outwards and between the petals, so that there is something to see.
        let light = 1.0 - 0.25 * distance.min(1.0) + 0.1 * wave;
        Rgb(colour.map(|value| (value * light).clamp(0.0, 255.0) as u8))
    });
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode_image(&image)
        .expect("a drawing is a valid image and memory takes it");
    (kind.name, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawings_are_images_of_all_kinds_and_always_the_same() {
        let names: Vec<&str> = (0..5).map(|number| drawing(number).0).collect();
        let sorted = ["daisy", "dandelion", "roses", "sunflowers", "tulips"];
        assert_eq!(names, sorted);
        let (_, bytes) = drawing(7);
        assert_eq!(bytes, drawing(7).1);
        assert_ne!(bytes, drawing(12).1, "two of a kind differ");
        let image = image::load_from_memory(&bytes).expect("a JPEG file");
        assert_eq!((image.width(), image.height()), SIZE);
    }
}
