//! The GPU's instructions as typed methods, Hopper's and those of every GPU since Ampere: what kernel bodies are written in, next to the arithmetic of [`Emit`].
//!
//! *Takes* an insertion point; *gives* one `nvvm` (or `llvm`) operation per method; *promises* the exact set that the emulator knows: an
//! operation that is not here is not used by any GPU kernel. Register, descriptor and fragment layouts are stated where they are used.
//!
//! Addresses of shared memory come in two forms: [`SHARED`] values (`!llvm.ptr<3>`) for barriers and matrix instructions, and generic
//! pointers ([`generic`]) for loads and stores. Counters and coordinates are i32.

use crate::mlir::emit::{Elem, Emit, I1, I32, I64, PTR, SHARED, Ty, Unit, V};

/// Threads of a warp.
pub const WARP: u32 = 32;
/// Threads of a warpgroup.
pub const WARPGROUP: u32 = 128;

/// Name of the dynamic shared memory.
const DYNAMIC: &str = "smem";

/// Declares the block's dynamic shared memory (aligned to 1024 bytes, as 128-byte swizzling wants). Once per module, before [`shared_memory`] is used.
pub fn declare_shared(unit: &Unit) {
    unit.global(&[
        ("sym_name", "\"smem\""),
        ("global_type", "!llvm.array<0 x i8>"),
        ("linkage", "#llvm.linkage<external>"),
        ("addr_space", "3 : i32"),
        ("alignment", "1024 : i64"),
    ]);
}

fn text<'c>(e: &Emit<'c>, name: &str, operands: &[V<'c>], attributes: &[(&str, &str)]) {
    e.op_text(name, operands, &[], attributes);
}

/// First byte of dynamic shared memory.
pub fn shared_memory<'c>(e: &Emit<'c>) -> V<'c> {
    e.op1("llvm.mlir.addressof", &[], SHARED, &[("global_name", &format!("@{DYNAMIC}"))])
}

/// `base + bytes`
pub fn shared_at<'c>(e: &Emit<'c>, base: V<'c>, bytes: i64) -> V<'c> {
    e.gep_const(base, Elem::I8, bytes)
}

/// A shared address as a generic pointer, for loads and stores.
pub fn generic<'c>(e: &Emit<'c>, shared: V<'c>) -> V<'c> {
    e.op1("llvm.addrspacecast", &[shared], PTR, &[])
}

/// The 32-bit address of shared memory, for descriptors.
pub fn shared_address<'c>(e: &Emit<'c>, shared: V<'c>) -> V<'c> {
    e.op1("llvm.ptrtoint", &[shared], I32, &[])
}

// ---- who am I ----

/// Thread number in the block, i32 below `threads`.
pub fn thread<'c>(e: &Emit<'c>, threads: u32) -> V<'c> {
    let range = format!("#llvm.constant_range<i32, 0, {threads}>");
    e.op1("nvvm.read.ptx.sreg.tid.x", &[], I32, &[("range", &range)])
}

/// Block number, i32.
pub fn block<'c>(e: &Emit<'c>) -> V<'c> {
    e.op1("nvvm.read.ptx.sreg.ctaid.x", &[], I32, &[])
}

/// The value of lane 0 in every lane: tells the compiler that it is uniform in the warp.
pub fn uniform<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    shuffle(e, "idx", x, e.iconst(I32, 0))
}

// ---- barriers and shuffles ----

/// Barrier of the whole block.
pub fn barrier(e: &Emit) {
    text(e, "nvvm.barrier", &[], &[("operandSegmentSizes", "array<i32: 0, 0, 0>")]);
}

/// Named barrier `id` (1 to 15) of `threads` threads; all of them wait.
pub fn named_barrier<'c>(e: &Emit<'c>, id: V<'c>, threads: u32) {
    let count = e.iconst(I32, threads.into());
    text(e, "nvvm.barrier", &[id, count], &[("operandSegmentSizes", "array<i32: 1, 1, 0>")]);
}

/// Barrier of the warp; orders its memory accesses.
pub fn warp_barrier(e: &Emit) {
    text(e, "nvvm.bar.warp.sync", &[e.iconst(I32, -1)], &[]);
}

fn shuffle<'c>(e: &Emit<'c>, kind: &str, x: V<'c>, by: V<'c>) -> V<'c> {
    let clamp = e.iconst(I32, 31);
    e.op1("nvvm.shfl.sync", &[e.iconst(I32, -1), x, by, clamp], x.ty, &[("kind", &format!("#nvvm<shfl_kind {kind}>"))])
}

/// The value of lane `lane ^ mask`; f32 or i32.
pub fn shuffle_xor<'c>(e: &Emit<'c>, x: V<'c>, mask: i64) -> V<'c> {
    shuffle(e, "bfly", x, e.iconst(I32, mask))
}

/// The value of lane `from` (i32).
pub fn shuffle_from<'c>(e: &Emit<'c>, x: V<'c>, from: V<'c>) -> V<'c> {
    shuffle(e, "idx", x, from)
}

// ---- mbarriers: 8 bytes of shared memory each ----

/// Sets the number of arrivals of a phase. Follow all of them by [`mbarrier_init_fence`] and a block barrier.
pub fn mbarrier_init<'c>(e: &Emit<'c>, bar: V<'c>, count: u32) {
    text(e, "nvvm.mbarrier.init", &[bar, e.iconst(I32, count.into())], &[]);
}

/// Makes initialised barriers visible to the bulk copy engine.
pub fn mbarrier_init_fence(e: &Emit) {
    text(e, "nvvm.fence.mbarrier.init", &[], &[]);
}

/// One arrival.
pub fn mbarrier_arrive<'c>(e: &Emit<'c>, bar: V<'c>) {
    text(e, "nvvm.mbarrier.arrive", &[bar], &[]);
}

/// One arrival that also announces `bytes` (i32) of copies.
pub fn mbarrier_expect<'c>(e: &Emit<'c>, bar: V<'c>, bytes: V<'c>) {
    text(e, "nvvm.mbarrier.arrive.expect_tx", &[bar, bytes], &[]);
}

/// Waits until the phase of parity `parity` (i32, 0 or 1) is complete.
pub fn mbarrier_wait<'c>(e: &Emit<'c>, bar: V<'c>, parity: V<'c>) {
    text(e, "nvvm.mbarrier.try_wait.parity", &[bar, parity, e.iconst(I32, 10_000_000)], &[]);
}

// ---- bulk tensor copies (TMA) ----

/// Copies the box of a tensor map at `coordinates` (i32, innermost first) to shared memory, completing on `bar`.
pub fn tma_load<'c>(e: &Emit<'c>, to: V<'c>, map: V<'c>, bar: V<'c>, coordinates: &[V<'c>]) {
    let to = e.op1("llvm.addrspacecast", &[to], Ty::of(Elem::Cluster), &[]);
    let operands = [vec![to, map], coordinates.to_vec(), vec![bar]].concat();
    let segments = format!("array<i32: 1, 1, {}, 1, 0, 0, 0, 0>", coordinates.len());
    text(e, "nvvm.cp.async.bulk.tensor.shared.cluster.global", &operands, &[("operandSegmentSizes", &segments)]);
}

/// Copies shared memory to the box at `coordinates`. Before it: [`async_fence`] by every writer, then a barrier. After it: [`tma_store_commit`].
pub fn tma_store<'c>(e: &Emit<'c>, map: V<'c>, from: V<'c>, coordinates: &[V<'c>]) {
    let operands = [vec![map, from], coordinates.to_vec()].concat();
    let segments = format!("array<i32: 1, 1, {}, 0, 0>", coordinates.len());
    text(e, "nvvm.cp.async.bulk.tensor.global.shared.cta", &operands, &[("operandSegmentSizes", &segments)]);
}

/// Closes this thread's group of bulk stores.
pub fn tma_store_commit(e: &Emit) {
    text(e, "nvvm.cp.async.bulk.commit.group", &[], &[]);
}

/// Waits until at most `pending` groups of this thread's bulk stores have not read their shared memory (`read`) or are not complete.
pub fn tma_store_wait(e: &Emit, pending: u32, read: bool) {
    let group = format!("{pending} : i32");
    let attributes = [("group", group.as_str()), ("read", "unit")];
    text(e, "nvvm.cp.async.bulk.wait_group", &[], &attributes[..1 + usize::from(read)]);
}

/// Fetches a tensor map ahead of its first use.
pub fn tma_prefetch<'c>(e: &Emit<'c>, map: V<'c>) {
    text(e, "nvvm.prefetch", &[map], &[("tensormap", "unit"), ("operandSegmentSizes", "array<i32: 1, 0>")]);
}

/// Announces the box of a tensor map at `coordinates` to the second-level cache. Changes nothing but time.
pub fn tma_ahead<'c>(e: &Emit<'c>, map: V<'c>, coordinates: &[V<'c>]) {
    let operands = [&[map], coordinates].concat();
    let segments = format!("array<i32: 1, {}, 0, 0>", coordinates.len());
    text(e, "nvvm.cp.async.bulk.tensor.prefetch", &operands, &[("operandSegmentSizes", &segments)]);
}

/// Orders this thread's writes to shared memory before later reads by bulk copies and warpgroup products (the async proxy).
pub fn async_fence(e: &Emit) {
    let attributes = [("kind", "#nvvm.proxy_kind<async.shared>"), ("space", "#nvvm.shared_space<cta>")];
    text(e, "nvvm.fence.proxy", &[], &attributes);
}

// ---- copies that threads start (sm_80 and later) ----

/// Copies 16 bytes from global memory (a generic pointer, aligned) to shared memory; with `count` (i32, 0 to 16) only so many are read, the rest is zero.
/// The bytes may be used after [`copy_wait`] by this thread and a barrier.
pub fn copy<'c>(e: &Emit<'c>, to: V<'c>, from: V<'c>, count: Option<V<'c>>) {
    let from = e.op1("llvm.addrspacecast", &[from], Ty::of(Elem::Global), &[]);
    let operands: Vec<V> = [to, from].into_iter().chain(count).collect();
    let attributes = [("size", "16 : i32"), ("modifier", "#nvvm<load_cache_modifier cg>")];
    text(e, "nvvm.cp.async.shared.global", &operands, &attributes);
}

/// Closes this thread's group of copies.
pub fn copy_commit(e: &Emit) {
    text(e, "nvvm.cp.async.commit.group", &[], &[]);
}

/// Waits until at most `pending` groups of this thread's copies are not complete.
pub fn copy_wait(e: &Emit, pending: u32) {
    text(e, "nvvm.cp.async.wait.group", &[], &[("n", &format!("{pending} : i32"))]);
}

// ---- warpgroup products ----

/// Registers per thread from here on; all threads of the warpgroup.
pub fn set_registers(e: &Emit, count: u32, more: bool) {
    let action = if more { "increase" } else { "decrease" };
    let (count, action) = (format!("{count} : i32"), format!("#nvvm<action {action}>"));
    text(e, "nvvm.setmaxregister", &[], &[("regCount", &count), ("action", &action)]);
}

/// Orders register and shared-memory writes before the following products.
pub fn wgmma_fence(e: &Emit) {
    text(e, "nvvm.wgmma.fence.aligned", &[], &[]);
}

/// Closes a group of products.
pub fn wgmma_commit(e: &Emit) {
    text(e, "nvvm.wgmma.commit.group.sync.aligned", &[], &[]);
}

/// Waits until at most `pending` groups are not complete; gives the accumulators back, so that nothing can use them earlier.
pub fn wgmma_wait<'c>(e: &Emit<'c>, pending: u32, accumulators: &[V<'c>]) -> Vec<V<'c>> {
    if accumulators.is_empty() {
        text(e, "nvvm.wgmma.wait.group.sync.aligned", &[], &[("group", &format!("{pending} : i64"))]);
        return vec![];
    }
    let parts: Vec<Vec<V>> = accumulators.iter().map(|&a| unpack(e, a)).collect();
    let flat = parts.concat();
    let constraints: Vec<String> =
        flat.iter().map(|_| "=f".to_string()).chain((0..flat.len()).map(|i| i.to_string())).collect();
    let all =
        inline(e, &format!("wgmma.wait_group.sync.aligned {pending};"), &constraints.join(","), &flat, flat.len());
    let all = unpack(e, all);
    let mut rest = &all[..];
    parts
        .iter()
        .map(|p| {
            let (mine, others) = rest.split_at(p.len());
            rest = others;
            pack(e, mine)
        })
        .collect()
}

/// How an operand of a product lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Major {
    /// k is contiguous.
    K,
    /// m (of A) or n (of B) is contiguous.
    Mn,
}

/// High bits of the descriptor of an operand in 128-byte swizzled tiles (rows of 64 bf16 or 32 f32, 8 rows are 1024 bytes). `leading` and `stride` in bytes:
/// K-major: `leading` is ignored, `stride` is the distance of groups of 8 rows (1024). Mn-major: `leading` is the distance of the next 64 columns, `stride` of the
/// next 8 k.
pub fn descriptor_bits(leading: u32, stride: u32) -> i64 {
    let field = |bytes: u32| i64::from((bytes >> 4) & 0x3fff);
    (1 << 62) | (field(stride) << 32) | (field(leading) << 16)
}

/// The descriptor of a tile at `address` (see [`shared_address`]): i64.
pub fn descriptor<'c>(e: &Emit<'c>, address: V<'c>, bits: i64) -> V<'c> {
    let low = e.shru(e.and(address, e.iconst(I32, 0x3ffff)), e.iconst(I32, 4));
    e.or(e.zero_extend(low, Elem::I64), e.iconst(I64, bits))
}

/// `acc + A B` on 64 x n x 16 bf16, both operands by descriptor; without `acc`, from zero (`first` gives the type's n). The result may be used after
/// [`wgmma_wait`]. Thread t of the warpgroup holds rows `16 (t / 32) + t % 32 / 4 (+ 8)`, columns `8 j + 2 (t % 4) (+ 1)`: element `4 j + 2 h + c` is row `+ 8 h`,
/// column `+ c`.
pub fn wgmma<'c>(e: &Emit<'c>, acc: V<'c>, zero: bool, a: (V<'c>, Major), b: (V<'c>, Major)) -> V<'c> {
    let Elem::Acc(count) = acc.ty.elem else { panic!("accumulator of wgmma: {:?}", acc.ty) };
    let layout = |m: Major, k: &str, mn: &str| format!("#nvvm.mma_layout<{}>", if m == Major::K { k } else { mn });
    e.op1(
        "nvvm.wgmma.mma_async",
        &[acc, a.0, b.0],
        acc.ty,
        &[
            ("shape", &format!("#nvvm.shape<m = 64, n = {}, k = 16>", 2 * count)),
            ("typeA", "#nvvm.wgmma_type<bf16>"),
            ("typeB", "#nvvm.wgmma_type<bf16>"),
            ("typeD", "#nvvm.wgmma_type<f32>"),
            ("scaleD", if zero { "#nvvm.wgmma_scale_out<zero>" } else { "#nvvm.wgmma_scale_out<one>" }),
            ("scaleA", "#nvvm.wgmma_scale_in<one>"),
            ("scaleB", "#nvvm.wgmma_scale_in<one>"),
            ("layoutA", &layout(a.1, "row", "col")),
            ("layoutB", &layout(b.1, "col", "row")),
        ],
    )
}

/// `acc + A B` with A in registers: `a` are four i32 of two bf16 each, in the order of an accumulator's elements rounded in pairs: for k-step s of 16 columns,
/// pairs of elements `(8 s, 8 s + 1)`, `(8 s + 2, 8 s + 3)`, `(8 s + 4, 8 s + 5)`, `(8 s + 6, 8 s + 7)`.
pub fn wgmma_registers<'c>(e: &Emit<'c>, acc: V<'c>, zero: bool, a: [V<'c>; 4], b: (V<'c>, Major)) -> V<'c> {
    let Elem::Acc(count) = acc.ty.elem else { panic!("accumulator of wgmma: {:?}", acc.ty) };
    let c = usize::from(count);
    let list = |from: usize, n: usize| (from..from + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
    // Outputs are $0.., tied inputs $c.., then A and the descriptor.
    let asm = format!(
        "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, {{{}}}, ${}, {}, 1, 1, {};",
        2 * count,
        list(0, c),
        list(2 * c, 4),
        2 * c + 4,
        if zero { "0" } else { "1" },
        if b.1 == Major::K { 0 } else { 1 }
    );
    let mut constraints: Vec<String> = vec!["=f".into(); c];
    constraints.extend((0..c).map(|i| i.to_string()));
    constraints.extend(["r", "r", "r", "r", "l"].map(String::from));
    let operands = [unpack(e, acc), a.to_vec(), vec![b.0]].concat();
    inline(e, &asm, &constraints.join(","), &operands, c)
}

/// An accumulator of `count` zeros.
pub fn zeros<'c>(e: &Emit<'c>, count: u16) -> V<'c> {
    e.op1("llvm.mlir.zero", &[], Ty::of(Elem::Acc(count)), &[])
}

/// The elements of an accumulator.
pub fn unpack<'c>(e: &Emit<'c>, acc: V<'c>) -> Vec<V<'c>> {
    let Elem::Acc(count) = acc.ty.elem else { panic!("unpack of {:?}", acc.ty) };
    let one = |i| e.op1("llvm.extractvalue", &[acc], Ty::of(Elem::F32), &[("position", &format!("array<i64: {i}>"))]);
    (0..count).map(one).collect()
}

/// An accumulator of these elements.
pub fn pack<'c>(e: &Emit<'c>, parts: &[V<'c>]) -> V<'c> {
    let ty = Ty::of(Elem::Acc(parts.len() as u16));
    let empty = e.op1("llvm.mlir.undef", &[], ty, &[]);
    let put = |acc, (i, &x): (usize, &V<'c>)| {
        e.op1("llvm.insertvalue", &[acc, x], ty, &[("position", &format!("array<i64: {i}>"))])
    };
    parts.iter().enumerate().fold(empty, put)
}

/// Inline PTX with `results` f32 results in one accumulator.
fn inline<'c>(e: &Emit<'c>, asm: &str, constraints: &str, operands: &[V<'c>], results: usize) -> V<'c> {
    let (asm, constraints) = (format!("\"{asm}\""), format!("\"{constraints}\""));
    e.op1(
        "llvm.inline_asm",
        operands,
        Ty::of(Elem::Acc(results as u16)),
        &[("asm_string", &asm), ("constraints", &constraints), ("has_side_effects", "unit")],
    )
}

/// Two f32 rounded to bf16 in one i32, `low` in the lower half.
pub fn pack_bf16<'c>(e: &Emit<'c>, low: V<'c>, high: V<'c>) -> V<'c> {
    let pair = e.op1("vector.from_elements", &[low, high], Ty::vec(2, Elem::F32), &[]);
    let pair = e.narrow(pair, Elem::Bf16);
    let one = e.op1("vector.bitcast", &[pair], Ty::vec(1, Elem::I32), &[]);
    e.extract(one, 0)
}

// ---- matrix fragments through shared memory, warp level ----

/// Stores four 8 x 8 tiles of 16-bit elements; lane l gives the address of row l % 8 of tile l / 8, `parts` as [`pack_bf16`] of an accumulator.
/// `transposed` stores columns as rows.
pub fn store_matrix<'c>(e: &Emit<'c>, address: V<'c>, parts: [V<'c>; 4], transposed: bool) {
    let operands = [vec![address], parts.to_vec()].concat();
    text(e, "nvvm.stmatrix", &operands, &matrix_attributes(transposed));
}

/// Loads four 8 x 8 tiles of 16-bit elements, as [`store_matrix`] stores them.
pub fn load_matrix<'c>(e: &Emit<'c>, address: V<'c>, transposed: bool) -> [V<'c>; 4] {
    let attributes = [&[("num", "4 : i32")], &matrix_attributes(transposed)[..]].concat();
    e.op_struct("nvvm.ldmatrix", &[address], "!llvm.struct<(i32, i32, i32, i32)>", I32, 4, &attributes)
        .try_into()
        .unwrap_or_else(|_| unreachable!("four results"))
}

fn matrix_attributes(transposed: bool) -> [(&'static str, &'static str); 3] {
    [
        ("layout", if transposed { "#nvvm.mma_layout<col>" } else { "#nvvm.mma_layout<row>" }),
        ("shape", "#nvvm.ld_st_matrix_shape<m = 8, n = 8>"),
        ("eltType", "#nvvm.ld_st_matrix_elt_type<b16>"),
    ]
}

/// `c + a b` on 16 x 8 x 16 bf16 (`mma.sync`, sm_80 and later): a four, b two i32 of two bf16, c four f32 as in [`wgmma`] with one column group.
pub fn mma<'c>(e: &Emit<'c>, a: [V<'c>; 4], b: [V<'c>; 2], c: [V<'c>; 4]) -> [V<'c>; 4] {
    let operands = [&a[..], &b[..], &c[..]].concat();
    let attributes = [
        ("layoutA", "#nvvm.mma_layout<row>"),
        ("layoutB", "#nvvm.mma_layout<col>"),
        ("multiplicandAPtxType", "#nvvm.mma_type<bf16>"),
        ("multiplicandBPtxType", "#nvvm.mma_type<bf16>"),
        ("shape", "#nvvm.shape<m = 16, n = 8, k = 16>"),
        ("operandSegmentSizes", "array<i32: 4, 2, 4>"),
    ];
    let ty = "!llvm.struct<(f32, f32, f32, f32)>";
    e.op_struct("nvvm.mma.sync", &operands, ty, Ty::of(Elem::F32), 4, &attributes)
        .try_into()
        .unwrap_or_else(|_| unreachable!("four results"))
}

// ---- approximations of the special function unit: f32, about 2 ulp, subnormals flushed ----

fn intrinsic<'c>(e: &Emit<'c>, name: &str, x: V<'c>) -> V<'c> {
    let name = format!("\"{name}\"");
    let attributes =
        [("intrin", name.as_str()), ("op_bundle_sizes", "array<i32>"), ("operandSegmentSizes", "array<i32: 1, 0>")];
    e.op1("llvm.call_intrinsic", &[x], x.ty, &attributes)
}

/// `2^x`
pub fn exp2_approx<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    intrinsic(e, "llvm.nvvm.ex2.approx.ftz.f", x)
}

/// `log2 x`
pub fn log2_approx<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    intrinsic(e, "llvm.nvvm.lg2.approx.ftz.f", x)
}

/// `1 / sqrt x`
pub fn rsqrt_approx<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    intrinsic(e, "llvm.nvvm.rsqrt.approx.ftz.f", x)
}

/// `1 / x`
pub fn recip_approx<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    intrinsic(e, "llvm.nvvm.rcp.approx.ftz.f", x)
}

/// The larger of two f32 (NaN loses): one instruction.
pub fn fmax<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    e.op1("llvm.intr.maxnum", &[a, b], a.ty, &[])
}

/// True in one thread of the block's `threads`, number `n`.
pub fn is_thread<'c>(e: &Emit<'c>, thread: V<'c>, n: i64) -> V<'c> {
    let yes = e.cmp(crate::mlir::emit::Cmp::Eq, thread, e.iconst(I32, n));
    debug_assert_eq!(yes.ty, I1);
    yes
}
