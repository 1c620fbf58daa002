//! How a contraction is cut: the tiles there are, and choices among them.
//!
//! *Takes* nothing; *gives* each tile's shared memory, threads and registers, and cuts by name; *promises* that a cut's text parses back to it.

use super::DEPTH;
use std::fmt;
use std::str::FromStr;

/// How a block cuts C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of C, 64 per multiplying warpgroup.
    pub rows: usize,
    /// Columns of C: 64, 128 or 256.
    pub cols: usize,
    /// Stages of the ring.
    pub stages: usize,
    /// Blocks that share a multiprocessor.
    pub blocks: usize,
    /// Two warpgroups take tiles in turn; otherwise all share every tile.
    pub turns: bool,
    /// Stages of A that shared memory keeps for a line of tiles. 0: A goes through the ring with B.
    pub kept: usize,
}

/// The cuts there are. Turns, and two blocks per multiprocessor, hide epilogues behind products; the widest tile reads least from the second-level cache where k
/// is deep, kept rows of A where it is not.
pub const TILES: [Tile; 5] = [
    Tile { rows: 128, cols: 256, stages: 4, blocks: 1, turns: false, kept: 0 },
    Tile { rows: 128, cols: 128, stages: 6, blocks: 1, turns: true, kept: 0 },
    Tile { rows: 128, cols: 128, stages: 6, blocks: 1, turns: true, kept: 8 },
    Tile { rows: 128, cols: 64, stages: 4, blocks: 2, turns: false, kept: 0 },
    Tile { rows: 64, cols: 64, stages: 6, blocks: 2, turns: false, kept: 0 },
];

impl Tile {
    /// Warpgroups that multiply.
    pub fn consumers(self) -> usize {
        if self.turns { 2 } else { self.rows / 64 }
    }
    /// Warpgroups that share a tile.
    pub fn sharing(self) -> usize {
        if self.turns { 1 } else { self.consumers() }
    }
    /// Blocks of 64 rows of a tile that one warpgroup has.
    pub fn parts(self) -> usize {
        self.rows / 64 / self.sharing()
    }
    /// Threads per block: the multiplying warpgroups, and a warp of which one thread copies; a warpgroup where registers are redistributed.
    pub fn threads(self) -> u32 {
        self.consumers() as u32 * 128 + if self.registers().is_some() { 128 } else { 32 }
    }
    /// Registers per thread after the start: of the copying warpgroup, of the others, together no more than the 168 that each of 384 threads has at launch.
    /// `None`: all keep what they have, which the assembler never exceeds: 96 where two blocks of two warpgroups share a multiprocessor.
    pub fn registers(self) -> Option<(u32, u32)> {
        (self.consumers() == 2 && self.blocks == 1).then_some((24, 240))
    }
    /// Bytes of one stage of A.
    pub fn stage_a(self) -> usize {
        self.rows * DEPTH * 2
    }
    /// Bytes of one stage of the ring: rows of A unless they are kept, then columns of B.
    pub fn stage(self) -> usize {
        if self.kept > 0 { self.cols * DEPTH * 2 } else { (self.rows + self.cols) * DEPTH * 2 }
    }
    /// Barriers: two per stage and kept stage, one per warpgroup that waits for its turn.
    pub fn barriers(self) -> usize {
        2 * (self.stages + self.kept) + if self.turns { 2 } else { 0 }
    }
    /// Bytes of shared memory: the ring, kept stages, barriers.
    pub fn shared(self) -> usize {
        self.stages * self.stage() + self.kept * self.stage_a() + 8 * self.barriers()
    }
    /// Whether the cut suits k in so many stages, so many pieces, and so many column tiles.
    pub(super) fn suits(self, stages: usize, splits: usize, cols: usize) -> bool {
        (!self.turns || splits == 1) && (self.kept == 0 || stages <= self.kept && cols >= 2)
    }
    /// Cycles of one stage's products, or of fetching its operands from the second-level cache, from which a multiprocessor gets about 40 bytes per cycle.
    pub(super) fn stage_cycles(self) -> usize {
        (self.rows * self.cols / 32).max(self.stage() / 40)
    }
}

/// A choice of how to cut a contraction, in place of the plan's own. Printed as the tile's name and, if given, `/` and the pieces of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// One of [`TILES`].
    pub tile: Tile,
    /// Pieces of k; `None`: as many as the plan takes with this tile.
    pub splits: Option<usize>,
    /// Most blocks; `None`: as many as the machine runs at once.
    pub blocks: Option<usize>,
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let kind = if self.kept > 0 {
            "-kept"
        } else if self.turns {
            "-turns"
        } else {
            ""
        };
        write!(f, "{}x{}{kind}", self.rows, self.cols)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.tile)?;
        self.splits.map_or(Ok(()), |n| write!(f, "/{n}"))?;
        self.blocks.map_or(Ok(()), |n| write!(f, "@{n}"))
    }
}

impl FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> Result<Cut, String> {
        let number = |what: &str, n: &str| match n.parse::<usize>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{n} is no number of {what}")),
        };
        let (rest, blocks) = match text.split_once('@') {
            Some((rest, n)) => (rest, Some(number("blocks", n)?)),
            None => (text, None),
        };
        let (name, splits) = match rest.split_once('/') {
            Some((name, n)) => (name, Some(number("pieces", n)?)),
            None => (rest, None),
        };
        let known = || TILES.map(|t| t.to_string()).join(", ");
        let tile = TILES.into_iter().find(|t| t.to_string() == name);
        let tile = tile.ok_or_else(|| format!("no cut is named {name} (there are {})", known()))?;
        Ok(Cut { tile, splits, blocks })
    }
}
