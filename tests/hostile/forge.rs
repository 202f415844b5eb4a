//! Image files made byte by byte: what no encoder would write.

/// A PNG chunk with its length and checksum.
pub fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
    bytes.extend(kind);
    bytes.extend(body);
    let checksum = crc32fast::hash(&bytes[4..]);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

/// A PNG header: bits a channel, colour type (0 grey, 2 colour, 3 palette, 4 grey and
/// alpha, 6 colour and alpha), interlaced or not.
pub fn png_header(width: u32, height: u32, depth: u8, colour: u8, interlaced: bool) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([depth, colour, 0, 0, interlaced.into()]);
    chunk(b"IHDR", &header)
}

/// A PNG file of these chunks.
pub fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    bytes.extend(chunks.concat());
    bytes.extend(chunk(b"IEND", b""));
    bytes
}

/// `bytes` as a zlib stream.
pub fn deflated(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("written to memory")
}

/// An EXIF block that says nothing but the orientation, 1 to 8.
pub fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    tiff
}

/// A JPEG segment with its length.
pub fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff, marker];
    bytes.extend((body.len() as u16 + 2).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A JPEG picture of one colour.
#[derive(Clone, Debug)]
pub struct Flat {
    pub width: u16,
    pub height: u16,
    /// Of each component: sampling across and down, and its value less 128: 0, or 32 to
    /// 63 either way.
    pub components: Vec<(u8, u8, i8)>,
    pub progressive: bool,
    /// Whether each component has a scan of its own.
    pub apart: bool,
    /// Scans of a progressive picture that refine nothing.
    pub refinements: usize,
    /// Adobe's transform (0 RGB or CMYK, 1 YCbCr, 2 YCCK), where it is to be said.
    pub adobe: Option<u8>,
}

impl Flat {
    /// A baseline picture with components of equal size.
    pub fn new(width: u16, height: u16, values: &[i8]) -> Flat {
        Flat {
            width,
            height,
            components: values.iter().map(|value| (1, 1, *value)).collect(),
            progressive: false,
            apart: false,
            refinements: 0,
            adobe: None,
        }
    }

    /// The file.
    pub fn encode(&self) -> Vec<u8> {
        let count = self.components.len();
        let mut bytes = vec![0xff, 0xd8];
        if let Some(transform) = self.adobe {
            let mut body = b"Adobe\0\x64\0\0\0\0".to_vec();
            body.push(transform);
            bytes.extend(segment(0xee, &body));
        }
        // All quantised by 8, so that a step of the first coefficient is a step of value.
        bytes.extend(segment(0xdb, &[&[0][..], &[8; 64][..]].concat()));
        let mut frame = vec![8];
        frame.extend(self.height.to_be_bytes());
        frame.extend(self.width.to_be_bytes());
        frame.push(count as u8);
        for (number, (across, down, _)) in self.components.iter().enumerate() {
            frame.extend([number as u8 + 1, across << 4 | down, 0]);
        }
        let marker = if self.progressive { 0xc2 } else { 0xc0 };
        bytes.extend(segment(marker, &frame));
        // First coefficients: 0 is no change, 10 a change of 6 bits. Others: 0 is the end
        // of the block, 10 the end of 16,384 and more blocks.
        bytes.extend(huffman(0x00, &[0, 6]));
        bytes.extend(huffman(0x10, &[0x00, 0xe0]));
        let all: Vec<usize> = (0..count).collect();
        let apart: Vec<Vec<usize>> = all.iter().map(|one| vec![*one]).collect();
        let scans = if self.apart { apart } else { vec![all] };
        for scan in &scans {
            bytes.extend(self.scan(scan));
        }
        if self.progressive {
            bytes.extend(self.refine());
        }
        bytes.extend([0xff, 0xd9]);
        bytes
    }

    /// A scan of the components `scan`.
    fn scan(&self, scan: &[usize]) -> Vec<u8> {
        let mut header = vec![scan.len() as u8];
        header.extend(scan.iter().flat_map(|number| [*number as u8 + 1, 0]));
        header.extend([0, if self.progressive { 0 } else { 63 }, 0]);
        let mut bits = Bits::default();
        let most = |side: fn(&(u8, u8, i8)) -> u8| {
            u64::from(self.components.iter().map(side).max().unwrap_or(1))
        };
        let (across, down) = (most(|c| c.0), most(|c| c.1));
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        let alone = scan.len() == 1;
        let units = width.div_ceil(8 * across) * height.div_ceil(8 * down);
        let mut started = vec![false; scan.len()];
        for _ in 0..if alone { 1 } else { units } {
            for (place, number) in scan.iter().enumerate() {
                let (h, v, value) = self.components[*number];
                let (h, v) = (u64::from(h), u64::from(v));
                let blocks = if alone {
                    (width * h).div_ceil(8 * across) * (height * v).div_ceil(8 * down)
                } else {
                    h * v
                };
                for _ in 0..blocks {
                    let change = if started[place] { 0 } else { value };
                    started[place] = true;
                    bits.change(change);
                    if !self.progressive {
                        bits.push(0, 1);
                    }
                }
            }
        }
        let mut bytes = segment(0xda, &header);
        bytes.extend(bits.stuffed());
        bytes
    }

    /// The other coefficients of the first component, which are all 0, and refinements.
    fn refine(&self) -> Vec<u8> {
        let blocks = u64::from(self.width).div_ceil(8) * u64::from(self.height).div_ceil(8);
        let mut bytes = Vec::new();
        for number in 0..=self.refinements {
            let approximation = if number == 0 { 0x01 } else { 0x10 };
            bytes.extend(segment(0xda, &[1, 1, 0, 1, 63, approximation]));
            let mut bits = Bits::default();
            for _ in 0..blocks.div_ceil(32_767) {
                bits.push(0b10, 2);
                bits.push(0x3fff, 14);
            }
            bytes.extend(bits.stuffed());
        }
        bytes
    }
}

/// A table of two codes, 0 and 10.
fn huffman(kind: u8, symbols: &[u8; 2]) -> Vec<u8> {
    let mut body = vec![kind, 1, 1];
    body.extend([0; 14]);
    body.extend(symbols);
    segment(0xc4, &body)
}

/// Entropy-coded data.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    last: u64,
    filled: u32,
}

impl Bits {
    fn push(&mut self, bits: u64, count: u32) {
        self.last = self.last << count | bits;
        self.filled += count;
        while self.filled >= 8 {
            self.filled -= 8;
            self.bytes.push((self.last >> self.filled) as u8);
        }
    }

    fn change(&mut self, value: i8) {
        match value {
            0 => self.push(0, 1),
            _ => {
                self.push(0b10, 2);
                let bits = if value > 0 {
                    i64::from(value)
                } else {
                    i64::from(value) + 63
                };
                self.push(bits as u64 & 63, 6);
            }
        }
    }

    /// Filled up with ones, and a 0 after each 0xFF.
    fn stuffed(mut self) -> Vec<u8> {
        self.push(0x7f, 7);
        let stuffed = self.bytes.iter().flat_map(|byte| {
            let zero = (*byte == 0xff).then_some(0);
            std::iter::once(*byte).chain(zero)
        });
        stuffed.collect()
    }
}
