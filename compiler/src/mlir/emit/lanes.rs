//! Conversions between types, and what is done with the lanes of vectors.
//!
//! *Takes* values; *gives* values; *promises* the same bits on every tier but for [`Emit::to_bf16`], where hardware flushes subnormals.

use super::*;

impl<'c> Emit<'c> {
    // ---- conversions ----

    /// Same bits, other type of the same total width.
    pub fn bitcast(&self, a: V<'c>, ty: Ty) -> V<'c> {
        if a.ty == ty {
            return a;
        }
        self.simple(if ty.lanes == 0 { "arith.bitcast" } else { "vector.bitcast" }, &[a], ty)
    }
    /// Signed widening or narrowing of an integer.
    pub fn int_cast(&self, a: V<'c>, elem: Elem) -> V<'c> {
        let ty = a.ty.with(elem);
        match elem.bytes().cmp(&a.ty.elem.bytes()) {
            std::cmp::Ordering::Equal => a,
            std::cmp::Ordering::Greater => self.simple("arith.extsi", &[a], ty),
            std::cmp::Ordering::Less => self.simple("arith.trunci", &[a], ty),
        }
    }
    /// Zero extension (also of i1).
    pub fn zero_extend(&self, a: V<'c>, elem: Elem) -> V<'c> {
        self.simple("arith.extui", &[a], a.ty.with(elem))
    }
    /// Truncation of an integer.
    pub fn truncate(&self, a: V<'c>, elem: Elem) -> V<'c> {
        self.simple("arith.trunci", &[a], a.ty.with(elem))
    }
    /// Signed integer to float.
    pub fn to_float(&self, a: V<'c>, elem: Elem) -> V<'c> {
        self.simple("arith.sitofp", &[a], a.ty.with(elem))
    }
    /// Float to signed integer towards zero. Out of range or NaN: undefined, clamp first.
    pub fn to_int(&self, a: V<'c>, elem: Elem) -> V<'c> {
        self.simple("arith.fptosi", &[a], a.ty.with(elem))
    }
    /// Float widening (f16, f32 to f32, f64).
    pub fn extend(&self, a: V<'c>, elem: Elem) -> V<'c> {
        self.simple("arith.extf", &[a], a.ty.with(elem))
    }
    /// Float narrowing, nearest even. For bf16 use [`Emit::to_bf16`].
    pub fn narrow(&self, a: V<'c>, elem: Elem) -> V<'c> {
        self.simple("arith.truncf", &[a], a.ty.with(elem))
    }

    /// bf16 (held as bf16 or i16) to f32: a shift, exact. A GPU has registers of two: there one is shifted, of the other the lower half is cleared.
    pub fn from_bf16(&self, a: V<'c>) -> V<'c> {
        if self.tier.is_gpu() && a.ty.lanes >= 2 && a.ty.lanes % 2 == 0 {
            let half = a.ty.lanes / 2;
            let ty = Ty::vec(half, Elem::I32);
            let pairs = self.bitcast(a, ty);
            let low = self.shl(pairs, self.iconst(ty, 16));
            let high = self.and(pairs, self.iconst(ty, -0x1_0000));
            let order: Vec<i64> = (0..i64::from(half)).flat_map(|i| [i, i + i64::from(half)]).collect();
            return self.bitcast(self.shuffle(low, high, &order), a.ty.with(Elem::F32));
        }
        let wide = a.ty.with(Elem::I32);
        let bits = self.zero_extend(self.bitcast(a, a.ty.with(Elem::I16)), Elem::I32);
        self.bitcast(self.shl(bits, self.iconst(wide, 16)), a.ty.with(Elem::F32))
    }

    /// f32 to bf16, nearest even, NaN stays NaN. Where the tier has an instruction it is used for vectors (it flushes subnormals).
    pub fn to_bf16(&self, a: V<'c>) -> V<'c> {
        assert_eq!(a.ty.elem, Elem::F32, "operand of to_bf16");
        if self.tier.is_gpu() || self.tier == Tier::Avx512Bf16 && a.ty.lanes >= 16 {
            return self.narrow(a, Elem::Bf16);
        }
        let ty = a.ty.with(Elem::I32);
        let c = |n| self.iconst(ty, n);
        let bits = self.bitcast(a, ty);
        let odd = self.and(self.shru(bits, c(16)), c(1));
        let rounded = self.add(bits, self.add(odd, c(0x7fff)));
        let quiet = self.or(bits, c(0x40_0000));
        let bits = self.select(self.cmp(Cmp::Uno, a, a), quiet, rounded);
        self.bitcast(self.truncate(self.shru(bits, c(16)), Elem::I16), a.ty.with(Elem::Bf16))
    }

    // ---- vectors ----

    /// A scalar in every lane.
    pub fn splat(&self, a: V<'c>, lanes: u32) -> V<'c> {
        assert_eq!(a.ty.lanes, 0, "splat of a vector");
        self.simple("vector.broadcast", &[a], Ty::vec(lanes, a.ty.elem))
    }
    /// One lane.
    pub fn extract(&self, a: V<'c>, lane: u32) -> V<'c> {
        let ty = Ty::of(a.ty.elem);
        let at = DenseI64ArrayAttribute::new(self.context, &[lane as i64]).into();
        self.result(self.op("vector.extract", &[a], &[ty], &[("static_position", at)]), 0, ty)
    }
    /// `a` with one lane replaced.
    pub fn insert(&self, scalar: V<'c>, a: V<'c>, lane: u32) -> V<'c> {
        let at = DenseI64ArrayAttribute::new(self.context, &[lane as i64]).into();
        self.result(self.op("vector.insert", &[scalar, a], &[a.ty], &[("static_position", at)]), 0, a.ty)
    }
    /// Lanes of `a` then `b`, picked by number; -1 leaves a lane undefined.
    pub fn shuffle(&self, a: V<'c>, b: V<'c>, lanes: &[i64]) -> V<'c> {
        assert_eq!(a.ty.elem, b.ty.elem, "operands of shuffle");
        let ty = Ty::vec(lanes.len() as u32, a.ty.elem);
        let mask = DenseI64ArrayAttribute::new(self.context, lanes).into();
        self.result(self.op("vector.shuffle", &[a, b], &[ty], &[("mask", mask)]), 0, ty)
    }
    /// `a0 b0 a1 b1 ..`: twice as many lanes.
    pub fn interleave(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        assert_eq!(a.ty, b.ty, "operands of interleave");
        self.simple("vector.interleave", &[a, b], Ty::vec(2 * a.ty.lanes, a.ty.elem))
    }
    /// Lanes `start..start + n`.
    pub fn lanes(&self, a: V<'c>, start: u32, n: u32) -> V<'c> {
        let pick: Vec<i64> = (start..start + n).map(i64::from).collect();
        self.shuffle(a, a, &pick)
    }
    /// All lanes of `a`, then all of `b`.
    pub fn concat(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        let pick: Vec<i64> = (0..(a.ty.lanes + b.ty.lanes) as i64).collect();
        self.shuffle(a, b, &pick)
    }

    /// Reduces lanes by halving: lane i with lane i + n/2, again and again. The order every reduction of the CPU back end uses.
    pub fn reduce(&self, a: V<'c>, f: impl Fn(V<'c>, V<'c>) -> V<'c>) -> V<'c> {
        let mut v = a;
        while v.ty.lanes > 1 {
            let half = v.ty.lanes / 2;
            v = f(self.lanes(v, 0, half), self.lanes(v, half, half));
        }
        self.extract(v, 0)
    }

    /// Transposes 16 rows of 16 32-bit lanes.
    pub fn transpose16(&self, rows: &[V<'c>]) -> Vec<V<'c>> {
        assert_eq!(rows.len(), 16, "rows of a 16x16 transpose");
        // Each step is one instruction per result on AVX-512 and on AVX2 halves: 4x4 blocks are transposed inside 128-bit parts
        // (unpack 32, then 64 bits), then the 4x4 matrix of parts.
        let low32: Vec<i64> = (0..4).flat_map(|p| [0, 16, 1, 17].map(|l| l + 4 * p)).collect();
        let high32: Vec<i64> = (0..4).flat_map(|p| [2, 18, 3, 19].map(|l| l + 4 * p)).collect();
        let low64: Vec<i64> = (0..4).flat_map(|p| [0, 1, 16, 17].map(|l| l + 4 * p)).collect();
        let high64: Vec<i64> = (0..4).flat_map(|p| [2, 3, 18, 19].map(|l| l + 4 * p)).collect();
        let parts = |p: [i64; 4]| -> Vec<i64> { p.iter().flat_map(|&p| (0..4).map(move |l| 4 * p + l)).collect() };
        let (even, odd) = (parts([0, 2, 4, 6]), parts([1, 3, 5, 7]));
        // blocks[4 g + j]: column 4 p + j of rows 4 g .. 4 g + 3 in part p.
        let mut blocks = Vec::with_capacity(16);
        for g in rows.chunks(4) {
            let (a, b) = (self.shuffle(g[0], g[1], &low32), self.shuffle(g[2], g[3], &low32));
            let (c, d) = (self.shuffle(g[0], g[1], &high32), self.shuffle(g[2], g[3], &high32));
            blocks.extend(
                [(a, b, &low64), (a, b, &high64), (c, d, &low64), (c, d, &high64)]
                    .map(|(x, y, m)| self.shuffle(x, y, m)),
            );
        }
        let mut columns = vec![rows[0]; 16];
        for j in 0..4 {
            let (a, b, c, d) = (blocks[j], blocks[4 + j], blocks[8 + j], blocks[12 + j]);
            let (p, q) = (self.shuffle(a, b, &even), self.shuffle(a, b, &odd));
            let (u, v) = (self.shuffle(c, d, &even), self.shuffle(c, d, &odd));
            columns[j] = self.shuffle(p, u, &even);
            columns[8 + j] = self.shuffle(p, u, &odd);
            columns[4 + j] = self.shuffle(q, v, &even);
            columns[12 + j] = self.shuffle(q, v, &odd);
        }
        columns
    }

    /// `acc + pairs of a times pairs of b`: `vdpbf16ps` on 32 bf16 lanes. Only on the tier that has it.
    pub fn dot_bf16(&self, acc: V<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
        assert_eq!(self.tier, Tier::Avx512Bf16, "bf16 dot on {:?}", self.tier);
        self.simple("x86vector.avx512.dot", &[acc, a, b], acc.ty)
    }
}
