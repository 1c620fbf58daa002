//! The inner loops of products, as MLIR: compiled with every kernel, so that they are fast whatever the emulator itself is built with.
//!
//! *Takes* operands in shared memory, part by part, and accumulators; *gives* sums; *promises* k in ascending order and no fused operation.
#![allow(unsafe_code)]

/// The functions, in a module with kernels: `emu_unpack` spreads `count` parts of eight bf16 each, the first at offset `from[i]` of `base` going to
/// element `to[i]` of `out`, its others `step` elements apart; `emu_multiply` adds `a[rows][16] b[16][n]` to `sum[rows][n]`, n a multiple of 8.
const TEXT: &str = r"
llvm.func @emu_unpack(%out: !llvm.ptr, %base: !llvm.ptr, %places: !llvm.ptr, %count: i64, %step: i64) {
  %c0 = arith.constant 0 : i64
  %c1 = arith.constant 1 : i64
  %c2 = arith.constant 2 : i64
  %shift = arith.constant dense<16> : vector<8xi32>
  scf.for %i = %c0 to %count step %c1 : i64 {
    %pair = arith.muli %i, %c2 : i64
    %at = llvm.getelementptr %places[%pair] : (!llvm.ptr, i64) -> !llvm.ptr, i32
    %after = llvm.getelementptr %at[1] : (!llvm.ptr) -> !llvm.ptr, i32
    %to = llvm.load %at {alignment = 4 : i64} : !llvm.ptr -> i32
    %from = llvm.load %after {alignment = 4 : i64} : !llvm.ptr -> i32
    %source = llvm.getelementptr %base[%from] : (!llvm.ptr, i32) -> !llvm.ptr, i8
    %raw = llvm.load %source {alignment = 2 : i64} : !llvm.ptr -> vector<8xi16>
    %wide = arith.extui %raw : vector<8xi16> to vector<8xi32>
    %bits = arith.shli %wide, %shift : vector<8xi32>
    %values = vector.bitcast %bits : vector<8xi32> to vector<8xf32>
    %first = llvm.getelementptr %out[%to] : (!llvm.ptr, i32) -> !llvm.ptr, f32
STORES  }
  llvm.return
}
llvm.func @emu_multiply(%sum: !llvm.ptr, %a: !llvm.ptr, %b: !llvm.ptr, %rows: i64, %n: i64) {
  %c0 = arith.constant 0 : i64
  %c1 = arith.constant 1 : i64
  %c8 = arith.constant 8 : i64
  %c16 = arith.constant 16 : i64
  scf.for %row = %c0 to %rows step %c1 : i64 {
    %start = arith.muli %row, %n : i64
    %left = arith.muli %row, %c16 : i64
    scf.for %j = %c0 to %n step %c8 : i64 {
      %index = arith.addi %start, %j : i64
      %at = llvm.getelementptr %sum[%index] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      %old = llvm.load %at {alignment = 4 : i64} : !llvm.ptr -> vector<8xf32>
      %new = scf.for %k = %c0 to %c16 step %c1 iter_args(%s = %old) -> (vector<8xf32>) : i64 {
        %ia = arith.addi %left, %k : i64
        %pa = llvm.getelementptr %a[%ia] : (!llvm.ptr, i64) -> !llvm.ptr, f32
        %x = llvm.load %pa {alignment = 4 : i64} : !llvm.ptr -> f32
        %xs = vector.broadcast %x : f32 to vector<8xf32>
        %rb = arith.muli %k, %n : i64
        %ib = arith.addi %rb, %j : i64
        %pb = llvm.getelementptr %b[%ib] : (!llvm.ptr, i64) -> !llvm.ptr, f32
        %y = llvm.load %pb {alignment = 4 : i64} : !llvm.ptr -> vector<8xf32>
        %p = arith.mulf %xs, %y : vector<8xf32>
        %next = arith.addf %s, %p : vector<8xf32>
        scf.yield %next : vector<8xf32>
      }
      llvm.store %new, %at {alignment = 4 : i64} : vector<8xf32>, !llvm.ptr
    }
  }
  llvm.return
}
";

/// [`TEXT`] with the stores of the eight elements of a part.
pub(super) fn text() -> String {
    let store = |i: usize| {
        format!(
            "    %v{i} = vector.extract %values[{i}] : f32 from vector<8xf32>
    %d{i} = arith.constant {i} : i64
    %o{i} = arith.muli %step, %d{i} : i64
    %p{i} = llvm.getelementptr %first[%o{i}] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    llvm.store %v{i}, %p{i} {{alignment = 4 : i64}} : f32, !llvm.ptr
"
        )
    };
    TEXT.replace("STORES", &(0..8).map(store).collect::<String>())
}

/// `emu_unpack`.
pub(super) type Unpack = unsafe extern "C" fn(*mut f32, *const u8, *const [u32; 2], i64, i64);

/// `emu_multiply`.
pub(super) type Multiply = unsafe extern "C" fn(*mut f32, *const f32, *const f32, i64, i64);

/// The functions of [`text`], compiled.
#[derive(Clone, Copy)]
pub(super) struct Loops {
    pub(super) unpack: Unpack,
    pub(super) multiply: Multiply,
}

impl Loops {
    /// Spreads parts into `out`: `places` are (element of `out`, offset from `base`), elements of a part are `step` apart.
    pub(super) fn unpack(&self, out: &mut [f32], base: usize, places: &[[u32; 2]], step: usize) {
        let last = places.iter().map(|p| p[0] as usize + 7 * step).max();
        assert!(last.is_none_or(|l| l < out.len()), "parts of an operand lie in it");
        // SAFETY: targets are inside of `out`, as just checked; offsets are those of [`super::product`], which has checked them against the window.
        unsafe { (self.unpack)(out.as_mut_ptr(), base as *const u8, places.as_ptr(), places.len() as i64, step as i64) }
    }

    /// `sum[rows][n] += a[rows][16] b[16][n]`
    pub(super) fn multiply(&self, sum: &mut [f32], a: &[f32], b: &[f32], n: usize) {
        let rows = a.len() / 16;
        assert!(
            n % 8 == 0 && sum.len() == rows * n && a.len() == rows * 16 && b.len() == 16 * n,
            "extents of a product"
        );
        // SAFETY: the slices have the lengths that the function goes through, as just checked.
        unsafe { (self.multiply)(sum.as_mut_ptr(), a.as_ptr(), b.as_ptr(), rows as i64, n as i64) }
    }
}
