//! What changes a photograph before it is learnt, so that no two epochs see the same one.
//!
//! Decides: which part of it is shown at which size, whether mirrored, and in which
//! colours. Leaves to others: decoding, and the order of the images.

use std::ops::RangeInclusive;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use super::{symmetric, unit};
use crate::types::Rng;

/// Share of the photograph's area that is shown.
const AREA: RangeInclusive<f32> = 0.25..=1.0;
/// Width of the shown part for each unit of height.
const ASPECT: RangeInclusive<f32> = 0.75..=4.0 / 3.0;
/// Attempts to fit a part of a drawn shape into the photograph before all of it is shown.
const ATTEMPTS: usize = 10;
/// Largest change of brightness, contrast and saturation, as shares.
const COLOUR: f32 = 0.4;
/// Weights of red, green and blue in the grey of a colour (ITU-R BT.601).
const GREY: [f32; 3] = [0.299, 0.587, 0.114];

/// Brings photographs to `side` x `side` pixels, each changed at random.
pub(super) struct Augment {
    side: u32,
    mean: [f32; 3],
    std: [f32; 3],
    resizer: Resizer,
}

impl Augment {
    /// For networks that want `side` pixels and colours of that mean and deviation.
    pub(super) fn new(side: u32, mean: [f32; 3], std: [f32; 3]) -> Augment {
        Augment {
            side,
            mean,
            std,
            resizer: Resizer::new(),
        }
    }

    /// Appends the changed photograph to `numbers`.
    ///
    /// *Shape*: `[side, side, 3]` f32, normalised.
    pub(super) fn photograph(&mut self, image: &RgbImage, rng: &mut Rng, numbers: &mut Vec<f32>) {
        let (left, top, width, height) = part(image.width(), image.height(), rng);
        let options = ResizeOptions::new()
            .crop(left.into(), top.into(), width.into(), height.into())
            .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        let source = ImageRef::new(image.width(), image.height(), image, PixelType::U8x3);
        let source = source.expect("as many bytes as pixels");
        let mut shown = Image::new(self.side, self.side, PixelType::U8x3);
        self.resizer
            .resize(&source, &mut shown, &options)
            .expect("the part lies within the photograph");
        let start = numbers.len();
        if rng.chance(50) {
            for row in shown.buffer().chunks(3 * self.side as usize) {
                numbers.extend(row.rchunks(3).flatten().map(|value| f32::from(*value)));
            }
        } else {
            numbers.extend(shown.buffer().iter().map(|value| f32::from(*value)));
        }
        self.colour(&mut numbers[start..], rng);
    }

    /// Changes brightness, contrast and saturation, in this order, and normalises.
    fn colour(&self, pixels: &mut [f32], rng: &mut Rng) {
        let mut factor = || 1.0 + COLOUR * symmetric(rng);
        let (brightness, contrast, saturation) = (factor(), factor(), factor());
        let grey = |pixel: &[f32]| -> f32 { pixel.iter().zip(GREY).map(|(p, g)| p * g).sum() };
        let count = pixels.len() as f32 / 3.0;
        let middle = brightness * pixels.chunks(3).map(grey).sum::<f32>() / count;
        for pixel in pixels.chunks_mut(3) {
            for value in &mut *pixel {
                *value = (*value * brightness - middle) * contrast + middle;
            }
            let grey = grey(pixel);
            for (channel, value) in pixel.iter_mut().enumerate() {
                let value_now = ((*value - grey) * saturation + grey).clamp(0.0, 255.0) / 255.0;
                *value = (value_now - self.mean[channel]) / self.std[channel];
            }
        }
    }
}

/// Left, top, width and height of a random part, in pixels.
///
/// *Source*: Szegedy et al., "Going Deeper with Convolutions", 2014, section 6.
fn part(width: u32, height: u32, rng: &mut Rng) -> (f32, f32, f32, f32) {
    let between = |range: RangeInclusive<f32>, share: f32| {
        range.start() + (range.end() - range.start()) * share
    };
    let (full_width, full_height) = (width as f32, height as f32);
    for _ in 0..ATTEMPTS {
        let area = full_width * full_height * between(AREA, unit(rng));
        let aspect = between(ASPECT.start().ln()..=ASPECT.end().ln(), unit(rng)).exp();
        let (width, height) = ((area * aspect).sqrt(), (area / aspect).sqrt());
        if width >= 1.0 && height >= 1.0 && width <= full_width && height <= full_height {
            let left = (full_width - width) * unit(rng);
            let top = (full_height - height) * unit(rng);
            return (left, top, width, height);
        }
    }
    (0.0, 0.0, full_width, full_height)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn a_part_lies_within_the_photograph_and_keeps_its_bounds() {
        let mut rng = Rng::new(1);
        let mut areas = Vec::new();
        for (width, height) in [(320, 240), (100, 100), (7, 900), (1, 1)] {
            for _ in 0..500 {
                let (left, top, w, h) = part(width, height, &mut rng);
                assert!(left >= 0.0 && top >= 0.0 && w > 0.0 && h > 0.0);
                assert!(left + w <= width as f32 + 1e-2 && top + h <= height as f32 + 1e-2);
                if width == 100 {
                    areas.push(w * h / 1e4);
                }
            }
        }
        areas.sort_by(f32::total_cmp);
        assert!(areas[0] >= 0.249 && areas[0] < 0.3, "{}", areas[0]);
        assert!(areas[areas.len() - 1] > 0.9);
    }

    #[test]
    fn photographs_keep_their_colours_within_the_allowed_change() {
        let image = RgbImage::from_pixel(40, 30, Rgb([200, 100, 50]));
        let mut augment = Augment::new(16, [0.0; 3], [1.0; 3]);
        let mut rng = Rng::new(2);
        let mut reds = Vec::new();
        for _ in 0..50 {
            let mut numbers = Vec::new();
            augment.photograph(&image, &mut rng, &mut numbers);
            assert_eq!(numbers.len(), 16 * 16 * 3);
            let [red, green, blue] = [numbers[0], numbers[1], numbers[2]];
            assert!(red >= green && green >= blue && blue >= 0.0 && red <= 1.0);
            // One colour stays one colour.
            assert!(numbers.chunks(3).all(|pixel| (pixel[0] - red).abs() < 1e-5));
            reds.push(red);
        }
        reds.sort_by(f32::total_cmp);
        assert!(
            reds[0] < 0.6 && reds[49] > 0.9,
            "{} to {}",
            reds[0],
            reds[49]
        );
    }

    #[test]
    fn about_half_of_the_photographs_are_mirrored() {
        let image = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 32 { 0 } else { 255 }; 3]));
        let mut augment = Augment::new(8, [0.0; 3], [1.0; 3]);
        let mut rng = Rng::new(3);
        let (mut mirrored, mut told) = (0, 0);
        for _ in 0..400 {
            let mut numbers = Vec::new();
            augment.photograph(&image, &mut rng, &mut numbers);
            let (left, right) = (numbers[0], numbers[7 * 3]);
            told += u32::from(left != right);
            mirrored += u32::from(left > right);
        }
        assert!(told > 300 && mirrored > told / 3 && mirrored < told * 2 / 3);
    }
}
