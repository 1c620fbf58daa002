//! What the launches of attention share.
//!
//! *Takes* a [`Shape`] and a kernel's description; *gives* typed pieces of a warp-specialised block; *promises* that barriers, parities and descriptors
//! are made in one place.

use super::documents::Rows;
use crate::kernel::attend::AttendKernel;
use crate::kernel::gpu::attend::{self, COLUMNS, Order, ROWS, Shape};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I1, I32, V};
use crate::mlir::gpu::ops::{self, Major};

/// Where a block works. All i32.
#[derive(Clone, Copy)]
pub(super) struct Place<'c> {
    /// First row.
    pub row: V<'c>,
    pub batch: V<'c>,
    /// Key/value head.
    pub kv: V<'c>,
    /// Query head of the group.
    pub group: V<'c>,
}

impl<'c> Place<'c> {
    /// From the block's number.
    pub fn new(e: &Emit<'c>, k: &AttendKernel, s: &Shape, o: &Order) -> Self {
        let n = |n: usize| e.iconst(I32, n as i64);
        let part = |x: V<'c>, by: usize| (e.divu(x, n(by)), e.remu(x, n(by)));
        let (rest, group) = part(ops::block(e), o.group);
        let (rest, head) = part(rest, o.chunk);
        let (chunk, tile) = part(rest, o.tiles);
        let tile = if o.late { e.sub(n(o.tiles - 1), tile) } else { tile };
        let head = e.add(e.mul_n(chunk, o.chunk as i64), head);
        let (batch, kv) = part(head, k.kv);
        Place { row: e.mul_n(tile, s.rows() as i64), batch, kv, group }
    }

    /// Number of the query head over batch and key/value heads.
    pub fn head(&self, e: &Emit<'c>, k: &AttendKernel) -> V<'c> {
        e.add(e.mul_n(e.add(e.mul_n(self.batch, k.kv as i64), self.kv), k.group as i64), self.group)
    }
}

/// A tensor's map and which dimensions it has.
#[derive(Clone, Copy)]
pub(super) struct Tensor<'c> {
    map: V<'c>,
    axes: [bool; 3],
}

impl<'c> Tensor<'c> {
    /// Of queries.
    pub fn q(k: &AttendKernel, map: V<'c>) -> Self {
        Tensor { map, axes: attend::axes(k, k.group) }
    }
    /// Of keys or values.
    pub fn kv(k: &AttendKernel, map: V<'c>) -> Self {
        Tensor { map, axes: attend::axes(k, 1) }
    }

    fn at(&self, e: &Emit<'c>, panel: usize, row: V<'c>, p: &Place<'c>) -> Vec<V<'c>> {
        let heads = [p.kv, p.group, p.batch].into_iter().zip(self.axes).filter(|(_, has)| *has).map(|(c, _)| c);
        [e.iconst(I32, (panel * COLUMNS) as i64), row].into_iter().chain(heads).collect()
    }

    /// Loads all panels of the box at `row` to shared memory at `to`, `panel` bytes each.
    pub fn load(
        &self,
        e: &Emit<'c>,
        (to, panel, panels): (V<'c>, usize, usize),
        bar: V<'c>,
        row: V<'c>,
        p: &Place<'c>,
    ) {
        for i in 0..panels {
            ops::tma_load(e, ops::shared_at(e, to, (i * panel) as i64), self.map, bar, &self.at(e, i, row, p));
        }
    }

    /// Stores all panels of a warpgroup's 64 rows from shared memory.
    pub fn store(&self, e: &Emit<'c>, from: V<'c>, s: &Shape, row: V<'c>, p: &Place<'c>) {
        for i in 0..s.panels {
            let from = ops::shared_at(e, from, (i * s.kept_panel()) as i64);
            ops::tma_store(e, self.map, from, &self.at(e, i, row, p));
        }
    }
}

/// The block's shared memory and barriers.
#[derive(Clone, Copy)]
pub(super) struct Block<'s, 'c> {
    pub s: &'s Shape,
    memory: V<'c>,
    /// Number in the block.
    pub thread: V<'c>,
    /// Warpgroup, the same value in a whole warp; 0 loads.
    pub warpgroup: V<'c>,
}

impl<'s, 'c> Block<'s, 'c> {
    /// Sets up the barriers; a barrier of the block follows.
    pub fn start(e: &Emit<'c>, s: &'s Shape, maps: &[V<'c>]) -> Self {
        let thread = ops::thread(e, s.threads());
        let warpgroup = ops::uniform(e, e.shru(thread, e.iconst(I32, 7)));
        let b = Block { s, memory: ops::shared_memory(e), thread, warpgroup };
        e.when(ops::is_thread(e, thread, 0), |e| {
            maps.iter().for_each(|&m| ops::tma_prefetch(e, m));
            for i in 0..s.barriers() {
                // Tiles are filled by the copies of one thread and freed by every computing warp.
                let frees = i > 0 && (i - 1) / s.stages % 2 == 1;
                ops::mbarrier_init(e, b.barrier(e, i), if frees { 4 * s.consumers as u32 } else { 1 });
            }
            ops::mbarrier_init_fence(e);
        });
        ops::barrier(e);
        b
    }

    /// Runs the loading thread's work, and that of the computing warpgroups, which get their number from 0.
    pub fn split(&self, e: &Emit<'c>, load: impl FnOnce(&Emit<'c>), compute: impl FnOnce(&Emit<'c>, V<'c>)) {
        let (few, many) = self.s.registers();
        let loads = e.cmp(Cmp::Eq, self.warpgroup, e.iconst(I32, 0));
        e.if_(
            loads,
            &[],
            |e| {
                ops::set_registers(e, few, false);
                e.when(ops::is_thread(e, self.thread, 0), load);
                vec![]
            },
            |e| {
                ops::set_registers(e, many, true);
                compute(e, e.add_n(self.warpgroup, -1));
                vec![]
            },
        );
    }

    fn barrier(&self, e: &Emit<'c>, i: usize) -> V<'c> {
        ops::shared_at(e, self.memory, (self.s.barriers_at() + 8 * i) as i64)
    }
    /// The kept tensors' barrier.
    pub fn kept(&self, e: &Emit<'c>) -> V<'c> {
        self.barrier(e, 0)
    }
    fn stage(&self, e: &Emit<'c>, i: V<'c>) -> V<'c> {
        e.and(i, e.iconst(I32, self.s.stages as i64 - 1))
    }
    /// Parity of the stage's phase that tile `i` fills.
    fn parity(&self, e: &Emit<'c>, i: V<'c>) -> V<'c> {
        let turn = e.shru(i, e.iconst(I32, self.s.stages.trailing_zeros().into()));
        e.and(turn, e.iconst(I32, 1))
    }
    fn ring(&self, e: &Emit<'c>, stream: usize, empty: bool, i: V<'c>) -> V<'c> {
        let first = self.barrier(e, 1 + (2 * stream + usize::from(empty)) * self.s.stages);
        e.gep(first, Elem::I64, self.stage(e, i))
    }

    /// Loading: waits until tile `i`'s place is free and announces its bytes; gives the barrier to load on.
    pub fn refill(&self, e: &Emit<'c>, stream: usize, i: V<'c>, bytes: usize) -> V<'c> {
        let other = e.sub(e.iconst(I32, 1), self.parity(e, i));
        ops::mbarrier_wait(e, self.ring(e, stream, true, i), other);
        let full = self.ring(e, stream, false, i);
        ops::mbarrier_expect(e, full, e.iconst(I32, bytes as i64));
        full
    }
    /// Computing: waits for tile `i`.
    pub fn wait(&self, e: &Emit<'c>, stream: usize, i: V<'c>) {
        ops::mbarrier_wait(e, self.ring(e, stream, false, i), self.parity(e, i));
    }
    /// Computing: tile `i` is read.
    pub fn free(&self, e: &Emit<'c>, stream: usize, i: V<'c>) {
        let lane = e.and(self.thread, e.iconst(I32, 31));
        let bar = self.ring(e, stream, true, i);
        if self.s.statistics {
            // Read by each lane's loads; products are over when the warp's wait is.
            ops::warp_barrier(e);
        }
        e.when(ops::is_thread(e, lane, 0), |e| ops::mbarrier_arrive(e, bar));
    }

    /// Where the rows of kept tensor `n` of computing warpgroup `w` are.
    pub fn kept_rows(&self, e: &Emit<'c>, n: usize, w: V<'c>) -> V<'c> {
        let base = ops::shared_at(e, self.memory, self.s.kept_at(n) as i64);
        e.gep(base, Elem::I8, e.mul_n(w, (self.s.panels * self.s.kept_panel()) as i64))
    }
    /// Where tile `i` of streamed tensor `n` is.
    pub fn tile(&self, e: &Emit<'c>, n: usize, i: V<'c>) -> V<'c> {
        let base = ops::shared_at(e, self.memory, self.s.stream_at(n) as i64);
        e.gep(base, Elem::I8, e.mul_n(self.stage(e, i), self.s.tile() as i64))
    }
    /// Where the statistics of stage `i` are.
    pub fn statistics(&self, e: &Emit<'c>, i: V<'c>) -> V<'c> {
        let base = ops::shared_at(e, self.memory, self.s.statistics_at() as i64);
        e.gep(base, Elem::I8, e.mul_n(self.stage(e, i), self.s.statistics_bytes() as i64))
    }

    /// Loads the kept rows of the block: tensor `n` from `tensors[n]`.
    pub fn load_kept(&self, e: &Emit<'c>, tensors: &[Tensor<'c>], p: &Place<'c>) {
        let s = self.s;
        let bar = self.kept(e);
        let bytes = tensors.len() * s.consumers * s.panels * s.kept_panel();
        ops::mbarrier_expect(e, bar, e.iconst(I32, bytes as i64));
        for (n, t) in tensors.iter().enumerate() {
            for w in 0..s.consumers {
                let to = self.kept_rows(e, n, e.iconst(I32, w as i64));
                t.load(e, (to, s.kept_panel(), s.panels), bar, e.add_n(p.row, (w * ROWS) as i64), p);
            }
        }
    }
    /// Loads tile `i` of streamed tensor `n` on the barrier `bar`.
    pub fn load_tile(
        &self,
        e: &Emit<'c>,
        (n, i): (usize, V<'c>),
        t: &Tensor<'c>,
        bar: V<'c>,
        row: V<'c>,
        p: &Place<'c>,
    ) {
        t.load(e, (self.tile(e, n, i), self.s.panel(), self.s.panels), bar, row, p);
    }

    /// The left operand of a product: a warpgroup's kept rows by columns.
    pub fn left(&self, e: &Emit<'c>, n: usize, w: V<'c>) -> Operand<'c> {
        Operand::new(e, self.kept_rows(e, n, w), self.s.kept_panel())
    }
    /// A right operand: tile `i` of streamed tensor `n`.
    pub fn right(&self, e: &Emit<'c>, n: usize, i: V<'c>) -> Operand<'c> {
        Operand::new(e, self.tile(e, n, i), self.s.panel())
    }

    /// `A B^T` over the head dimension from zero: 64 rows by [`Shape::step`] columns.
    pub fn scores(&self, e: &Emit<'c>, a: &Operand<'c>, b: &Operand<'c>) -> V<'c> {
        let mut acc = ops::zeros(e, self.s.step as u16 / 2);
        for step in 0..self.s.columns() / 16 {
            acc = ops::wgmma(e, acc, step == 0, (a.across(e, step), Major::K), (b.across(e, step), Major::K));
        }
        acc
    }
    /// `acc + A B`: A in registers (64 rows by [`Shape::step`]), B a tile, its rows are the contraction.
    pub fn combine(&self, e: &Emit<'c>, mut acc: V<'c>, a: &[V<'c>], b: &Operand<'c>) -> V<'c> {
        for (step, a) in a.chunks(4).enumerate() {
            let a = [a[0], a[1], a[2], a[3]];
            acc = ops::wgmma_registers(e, acc, false, a, (b.down(e, step), Major::Mn));
        }
        acc
    }

    /// Writes a warpgroup's results (64 rows by [`Shape::columns`] of f32) as bf16: through the shared memory of its kept rows `n`, which nothing reads any more.
    pub fn store(&self, e: &Emit<'c>, results: &[(usize, Vec<V<'c>>, Tensor<'c>)], w: V<'c>, p: &Place<'c>) {
        let thread = e.and(self.thread, e.iconst(I32, 127));
        let id = e.add_n(w, 1);
        ops::named_barrier(e, id, 128);
        for (n, values, _) in results {
            self.stage_result(e, *n, values, w, thread);
        }
        ops::async_fence(e);
        ops::named_barrier(e, id, 128);
        e.when(ops::is_thread(e, thread, 0), |e| {
            let row = e.add(p.row, e.mul_n(w, ROWS as i64));
            for (n, _, tensor) in results {
                tensor.store(e, self.kept_rows(e, *n, w), self.s, row, p);
            }
            ops::tma_store_commit(e);
            ops::tma_store_wait(e, 0, true);
        });
    }

    /// Rows of 128 bytes, 16-byte pieces exchanged as the swizzle of the map says: piece c of row r is at c xor r % 8.
    fn stage_result(&self, e: &Emit<'c>, n: usize, values: &[V<'c>], w: V<'c>, thread: V<'c>) {
        let c = |n: i64| e.iconst(I32, n);
        let base = self.kept_rows(e, n, w);
        // Lane l gives the address of row l % 8 of 8 x 8 tile l / 8: rows 0, rows 8, then the same of the next 8 columns.
        let low = e.and(thread, c(7));
        let half = e.and(e.shru(thread, c(3)), c(1));
        let next = e.and(e.shru(thread, c(4)), c(1));
        let row = e.add(e.add(e.mul_n(e.shru(thread, c(5)), 16), e.mul_n(half, 8)), low);
        let piece = e.xor(next, low);
        let line = e.mul_n(row, 2 * COLUMNS as i64);
        let packed = pack_all(e, values);
        for (j, four) in packed.chunks(4).enumerate() {
            let (panel, j) = (j / 4, j % 4);
            let place = e.add(line, e.mul_n(e.xor(piece, c(2 * j as i64)), 16));
            let at = ops::shared_at(e, e.gep(base, Elem::I8, place), (panel * self.s.kept_panel()) as i64);
            ops::store_matrix(e, at, [four[0], four[1], four[2], four[3]], false);
        }
    }
}

/// Descriptor of a tile of panels.
#[derive(Clone, Copy)]
pub(super) struct Operand<'c> {
    /// Of the first panel: contraction along the rows (K-major), and down them (Mn-major).
    along: V<'c>,
    down: V<'c>,
    panel: usize,
}

impl<'c> Operand<'c> {
    fn new(e: &Emit<'c>, at: V<'c>, panel: usize) -> Self {
        let address = ops::shared_address(e, at);
        let of = |bits| ops::descriptor(e, address, bits);
        Operand { along: of(ops::descriptor_bits(16, 1024)), down: of(ops::descriptor_bits(panel as u32, 1024)), panel }
    }
    /// Columns `16 step ..` for a contraction over columns.
    fn across(&self, e: &Emit<'c>, step: usize) -> V<'c> {
        let bytes = step / 4 * self.panel + step % 4 * 32;
        e.add_n(self.along, bytes as i64 / 16)
    }
    /// Rows `16 step ..` for a contraction over rows.
    fn down(&self, e: &Emit<'c>, step: usize) -> V<'c> {
        e.add_n(self.down, step as i64 * 16 * 2 * COLUMNS as i64 / 16)
    }
}

/// Neighbouring elements of an accumulator rounded to bf16: the left operand of a product, four values for 16 columns.
pub(super) fn pack_all<'c>(e: &Emit<'c>, values: &[V<'c>]) -> Vec<V<'c>> {
    values.chunks(2).map(|p| ops::pack_bf16(e, p[0], p[1])).collect()
}

/// What [`pack_all`] rounded, as f32 again.
pub(super) fn unpack_all<'c>(e: &Emit<'c>, packed: &[V<'c>]) -> Vec<V<'c>> {
    let (half, high) = (e.iconst(I32, 16), e.iconst(I32, -0x1_0000));
    packed.iter().flat_map(|&x| [e.shl(x, half), e.and(x, high)]).map(|x| e.bitcast(x, F32)).collect()
}

/// Sum or maximum over the four lanes that share a row.
pub(super) fn over_quad<'c>(e: &Emit<'c>, x: V<'c>, f: impl Fn(V<'c>, V<'c>) -> V<'c>) -> V<'c> {
    let x = f(x, ops::shuffle_xor(e, x, 1));
    f(x, ops::shuffle_xor(e, x, 2))
}

/// Where a thread's elements of a warpgroup's accumulator are: i32.
#[derive(Clone, Copy)]
pub(super) struct Element<'c> {
    /// First of its rows, the other is 8 further.
    pub row: V<'c>,
    /// First of its columns: element `4 j + 2 h + c` is column `+ 8 j + c` of row `+ 8 h`.
    pub column: V<'c>,
}

impl<'c> Element<'c> {
    pub fn new(e: &Emit<'c>, thread: V<'c>) -> Self {
        let c = |n: i64| e.iconst(I32, n);
        let warp = e.and(e.shru(thread, c(5)), c(3));
        let lane = e.and(thread, c(31));
        let row = e.add(e.mul_n(warp, 16), e.shru(lane, c(2)));
        Element { row, column: e.mul_n(e.and(lane, c(3)), 2) }
    }
}

/// Which keys a query sees, for a tile of `rows` x `columns` scores.
pub(super) struct Mask<'k, 'c> {
    pub k: &'k AttendKernel,
    pub rows: usize,
    pub columns: usize,
    /// Rows are keys, columns queries.
    pub transposed: bool,
    /// Documents of the rows.
    pub documents: Option<Rows<'c>>,
}

impl<'c> Mask<'_, 'c> {
    /// Whether the tile at `row`, `column` (multiples of their sizes) hides anything. None: never.
    fn needed(&self, e: &Emit<'c>, row: V<'c>, column: V<'c>) -> Option<V<'c>> {
        let k = self.k;
        let (query, key) = if self.transposed { (column, row) } else { (row, column) };
        let (queries, keys) = if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        let mut any: Option<V<'c>> = None;
        let mut or = |x: V<'c>| any = Some(any.map_or(x, |y| e.or(x, y)));
        if k.causal {
            or(e.cmp(Cmp::Gt, e.add_n(key, keys as i64 - 1), query));
        } else if !self.transposed && !k.time.is_multiple_of(keys) {
            or(e.cmp(Cmp::Gt, e.add_n(key, keys as i64), e.iconst(I32, k.time as i64)));
        }
        if let Some(w) = k.window {
            or(e.cmp(Cmp::Le, e.add_n(key, i64::from(w)), e.add_n(query, queries as i64 - 1)));
        }
        if let Some(d) = &self.documents {
            or(d.differ(e, column, self.columns));
        }
        any
    }

    /// `values` (an accumulator's elements) with what is hidden replaced by `with`. `place` is the tile's first row and column.
    pub fn apply(
        &self,
        e: &Emit<'c>,
        values: Vec<V<'c>>,
        with: f64,
        at: &Element<'c>,
        place: (V<'c>, V<'c>),
    ) -> Vec<V<'c>> {
        let Some(needed) = self.needed(e, place.0, place.1) else { return values };
        let tys = vec![F32; values.len()];
        let hide = |e: &Emit<'c>| {
            let with = e.fconst(F32, with);
            // Column less row of elements (0, h): element (j, h, c) is 8 j + c further.
            let first = e.sub(e.add(place.1, at.column), e.add(place.0, at.row));
            let ends = e.sub(e.iconst(I32, self.k.time as i64), e.add(place.1, at.column));
            let eight = |(j, four): (usize, &[V<'c>])| {
                let same = self.documents.map(|d| d.same(e, place.1, j));
                let one = |(i, &x): (usize, &V<'c>)| {
                    let (h, c) = (i / 2, i % 2);
                    let column = (8 * j + c) as i64;
                    let same = same.map(|s| s[h][c]);
                    e.select(self.visible(e, first, column - 8 * h as i64, (ends, column), same), x, with)
                };
                four.iter().enumerate().map(one).collect::<Vec<_>>()
            };
            values.chunks(4).enumerate().flat_map(eight).collect()
        };
        e.if_(needed, &tys, hide, |_| values.clone())
    }

    /// Of the element at column less row `first + further`; `ends` tells how far the last position is, `same` whether it is of one document.
    fn visible(
        &self,
        e: &Emit<'c>,
        first: V<'c>,
        further: i64,
        (ends, column): (V<'c>, i64),
        same: Option<V<'c>>,
    ) -> V<'c> {
        let n = |n: i64| e.iconst(I32, n);
        let mut all = same;
        let mut and = |x: V<'c>| all = Some(all.map_or(x, |y| e.and(x, y)));
        let w = self.k.window.map(i64::from);
        if self.transposed {
            // Column less row is query less key.
            if self.k.causal {
                and(e.cmp(Cmp::Ge, first, n(-further)));
            }
            if let Some(w) = w {
                and(e.cmp(Cmp::Lt, first, n(w - further)));
            }
        } else {
            if self.k.causal {
                and(e.cmp(Cmp::Le, first, n(-further)));
            } else {
                and(e.cmp(Cmp::Gt, ends, n(column)));
            }
            if let Some(w) = w {
                and(e.cmp(Cmp::Gt, first, n(-w - further)));
            }
        }
        let all = all.unwrap_or_else(|| unreachable!("a mask without a condition"));
        debug_assert_eq!(all.ty, I1);
        all
    }
}

/// `a / b`, up, for positive i32.
pub(super) fn div_up<'c>(e: &Emit<'c>, a: V<'c>, b: usize) -> V<'c> {
    e.divu(e.add_n(a, b as i64 - 1), e.iconst(I32, b as i64))
}

/// The smaller of two i32.
pub(super) fn least<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    e.select(e.cmp(Cmp::Lt, a, b), a, b)
}

/// The larger of two i32.
pub(super) fn most<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    e.select(e.cmp(Cmp::Gt, a, b), a, b)
}

/// Keys `lo .. hi` that any of the queries `first .. first + rows` sees, as numbers of tiles of `step`.
pub(super) fn keys_of<'c>(e: &Emit<'c>, k: &AttendKernel, first: V<'c>, rows: usize, step: usize) -> (V<'c>, V<'c>) {
    let time = e.iconst(I32, k.time as i64);
    let end = if k.causal { least(e, e.add_n(first, rows as i64), time) } else { time };
    let lo = match k.window {
        Some(w) => {
            let from = most(e, e.add_n(first, 1 - i64::from(w)), e.iconst(I32, 0));
            e.divu(from, e.iconst(I32, step as i64))
        }
        None => e.iconst(I32, 0),
    };
    (lo, div_up(e, end, step))
}

/// Queries that see any of the keys `first .. first + rows`, as numbers of tiles of `step`.
pub(super) fn queries_of<'c>(e: &Emit<'c>, k: &AttendKernel, first: V<'c>, rows: usize, step: usize) -> (V<'c>, V<'c>) {
    let n = |n: usize| e.iconst(I32, n as i64);
    let lo = if k.causal { e.divu(first, n(step)) } else { n(0) };
    let end = match k.window {
        Some(w) => least(e, e.add_n(first, (rows + w as usize - 1) as i64), n(k.time)),
        None => n(k.time),
    };
    (lo, div_up(e, end, step))
}
