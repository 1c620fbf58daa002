//! Writing MLIR that reads like arithmetic.
//!
//! *Takes* a melior context; *gives* [`Unit`] (a module under construction), [`Emit`] (an insertion point with short typed methods) and
//! [`V`] (a value that knows its type); *promises* plain IR: scalars and 1-D vectors, `!llvm.ptr` addressing, `scf` loops, no memref, no fast-math,
//! FMA only where [`Emit::fma`] is called.
//!
//! A method called with operands of the wrong type panics: that is a bug of the emitter that called it, found by the first test that emits it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use melior::Context;
use melior::dialect::llvm;
use melior::ir::attribute::{
    ArrayAttribute, BoolAttribute, DenseElementsAttribute, DenseI32ArrayAttribute, DenseI64ArrayAttribute,
    FloatAttribute, IntegerAttribute, StringAttribute, TypeAttribute,
};
use melior::ir::block::BlockLike;
use melior::ir::operation::{OperationBuilder, OperationLike, OperationRef};
use melior::ir::r#type::IntegerType;
use melior::ir::{Attribute, Block, BlockRef, Identifier, Location, Module, Region, RegionLike, Type, Value};

use super::tier::Tier;

mod lanes;
mod unit;

pub use unit::Unit;

/// Element of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Elem {
    I1,
    I8,
    I16,
    I32,
    I64,
    Bf16,
    F16,
    F32,
    F64,
    Ptr,
    /// A pointer into a GPU block's shared memory (`!llvm.ptr<3>`).
    Shared,
    /// A pointer known to be into a GPU's global memory (`!llvm.ptr<1>`): source of copies that threads start.
    Global,
    /// A pointer into the shared memory of a GPU cluster (`!llvm.ptr<7>`): destination of bulk copies.
    Cluster,
    /// That many f32 in one value (`!llvm.struct`): the accumulator of a warpgroup product, one thread's part.
    Acc(u16),
}

impl Elem {
    /// Bytes in memory.
    pub fn bytes(self) -> usize {
        match self {
            Elem::I1 | Elem::I8 => 1,
            Elem::I16 | Elem::Bf16 | Elem::F16 => 2,
            Elem::I32 | Elem::F32 => 4,
            Elem::I64 | Elem::F64 | Elem::Ptr | Elem::Shared | Elem::Global | Elem::Cluster => 8,
            Elem::Acc(n) => 4 * n as usize,
        }
    }
    /// Pointers of any address space.
    pub fn is_pointer(self) -> bool {
        matches!(self, Elem::Ptr | Elem::Shared | Elem::Global | Elem::Cluster)
    }
    /// Floats of any width.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::Bf16 | Elem::F16 | Elem::F32 | Elem::F64)
    }
}

/// Type of a value: a scalar (`lanes == 0`) or a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ty {
    /// Element.
    pub elem: Elem,
    /// Number of lanes, 0 for a scalar.
    pub lanes: u32,
}

impl Ty {
    /// A scalar.
    pub const fn of(elem: Elem) -> Ty {
        Ty { elem, lanes: 0 }
    }
    /// A vector.
    pub const fn vec(lanes: u32, elem: Elem) -> Ty {
        Ty { elem, lanes }
    }
    /// Same shape, other element.
    pub const fn with(self, elem: Elem) -> Ty {
        Ty { elem, lanes: self.lanes }
    }
    /// The integer type of the same width: what comparisons of bits and polynomials' exponents use.
    pub fn int(self) -> Ty {
        self.with(match self.elem {
            Elem::F64 | Elem::I64 | Elem::Ptr | Elem::Global => Elem::I64,
            Elem::Shared | Elem::Cluster => Elem::I32,
            Elem::Acc(_) => panic!("an accumulator has no integer type"),
            Elem::F32 | Elem::I32 => Elem::I32,
            Elem::Bf16 | Elem::F16 | Elem::I16 => Elem::I16,
            Elem::I8 => Elem::I8,
            Elem::I1 => Elem::I1,
        })
    }
}

/// Scalar f32.
pub const F32: Ty = Ty::of(Elem::F32);
/// Scalar i32.
pub const I32: Ty = Ty::of(Elem::I32);
/// Scalar i64: all addresses and loop counters.
pub const I64: Ty = Ty::of(Elem::I64);
/// Scalar i1.
pub const I1: Ty = Ty::of(Elem::I1);
/// A pointer.
pub const PTR: Ty = Ty::of(Elem::Ptr);
/// A pointer into shared memory (GPU).
pub const SHARED: Ty = Ty::of(Elem::Shared);
/// 16 lanes of f32: the vector every kernel is written in.
pub const F32X16: Ty = Ty::vec(16, Elem::F32);
/// 16 lanes of i32.
pub const I32X16: Ty = Ty::vec(16, Elem::I32);

/// A value of the IR and its type.
#[derive(Clone, Copy)]
pub struct V<'c> {
    value: Value<'c, 'c>,
    /// Its type.
    pub ty: Ty,
}

/// Comparison. On floats ordered: false when an operand is NaN, except `Ne` (true) and `Uno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Either is NaN (floats only).
    Uno,
    /// Unsigned less (integers only).
    Ult,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Constant {
    Int(Ty, i64),
    Float(Ty, u64),
}

/// An insertion point. Cheap to clone; closures of loops and branches receive one that points into their body.
#[derive(Clone)]
pub struct Emit<'c> {
    context: &'c Context,
    block: BlockRef<'c, 'c>,
    entry: BlockRef<'c, 'c>,
    location: Location<'c>,
    /// The tier the code is for.
    pub tier: Tier,
    /// Whether f32 functions and divisions may be a GPU's approximations.
    pub approximate: bool,
    constants: Rc<RefCell<HashMap<Constant, V<'c>>>>,
}

impl<'c> Emit<'c> {
    /// The same insertion point for code without approximations.
    pub fn exact(&self) -> Emit<'c> {
        Emit { approximate: false, ..self.clone() }
    }

    /// Appends any operation: the way out for operations without a method. Attributes are given as values.
    pub fn op(
        &self,
        name: &str,
        operands: &[V<'c>],
        results: &[Ty],
        attributes: &[(&str, Attribute<'c>)],
    ) -> OperationRef<'c, 'c> {
        self.block.append_operation(self.build(name, operands, results, attributes, vec![]))
    }

    /// Like [`Emit::op`] for one result; attributes are MLIR text.
    pub fn op1(&self, name: &str, operands: &[V<'c>], result: Ty, attributes: &[(&str, &str)]) -> V<'c> {
        let attributes: Vec<_> = attributes.iter().map(|(k, v)| (*k, self.attribute(v))).collect();
        self.result(self.op(name, operands, &[result], &attributes), 0, result)
    }

    /// Like [`Emit::op`]; attributes are MLIR text.
    pub fn op_text(
        &self,
        name: &str,
        operands: &[V<'c>],
        results: &[Ty],
        attributes: &[(&str, &str)],
    ) -> OperationRef<'c, 'c> {
        let attributes: Vec<_> = attributes.iter().map(|(k, v)| (*k, self.attribute(v))).collect();
        self.op(name, operands, results, &attributes)
    }

    /// An operation with one result, a struct of `n` elements of type `part`, given as MLIR text; gives the elements.
    pub fn op_struct(
        &self,
        name: &str,
        operands: &[V<'c>],
        ty: &str,
        part: Ty,
        n: usize,
        attributes: &[(&str, &str)],
    ) -> Vec<V<'c>> {
        let ty = Type::parse(self.context, ty).unwrap_or_else(|| panic!("type {ty} does not parse"));
        let operands: Vec<Value> = operands.iter().map(|v| v.value).collect();
        let attributes: Vec<_> =
            attributes.iter().map(|(k, v)| (Identifier::new(self.context, k), self.attribute(v))).collect();
        let operation = OperationBuilder::new(name, self.location)
            .add_operands(&operands)
            .add_results(&[ty])
            .add_attributes(&attributes)
            .build()
            .unwrap_or_else(|_| panic!("{name} does not build"));
        let operation = self.block.append_operation(operation);
        // The type of `whole` is never asked for: only its elements leave this function.
        let whole = self.result(operation, 0, part);
        let one = |i| self.op1("llvm.extractvalue", &[whole], part, &[("position", &format!("array<i64: {i}>"))]);
        (0..n).map(one).collect()
    }

    fn build(
        &self,
        name: &str,
        operands: &[V<'c>],
        results: &[Ty],
        attributes: &[(&str, Attribute<'c>)],
        regions: Vec<Region<'c>>,
    ) -> melior::ir::Operation<'c> {
        let operands: Vec<Value> = operands.iter().map(|v| v.value).collect();
        let results: Vec<Type> = results.iter().map(|&t| self.ty(t)).collect();
        let attributes: Vec<_> = attributes.iter().map(|(k, v)| (Identifier::new(self.context, k), *v)).collect();
        OperationBuilder::new(name, self.location)
            .add_operands(&operands)
            .add_results(&results)
            .add_attributes(&attributes)
            .add_regions_vec(regions)
            .build()
            .unwrap_or_else(|_| panic!("{name} does not build"))
    }

    fn result(&self, operation: OperationRef<'c, 'c>, index: usize, ty: Ty) -> V<'c> {
        V { value: operation.result(index).expect("as many results as asked for").into(), ty }
    }

    fn simple(&self, name: &str, operands: &[V<'c>], result: Ty) -> V<'c> {
        self.result(self.op(name, operands, &[result], &[]), 0, result)
    }

    fn attribute(&self, text: &str) -> Attribute<'c> {
        Attribute::parse(self.context, text).unwrap_or_else(|| panic!("attribute {text} does not parse"))
    }

    /// The MLIR type.
    pub fn ty(&self, ty: Ty) -> Type<'c> {
        let c = self.context;
        let elem = match ty.elem {
            Elem::I1 => IntegerType::new(c, 1).into(),
            Elem::I8 => IntegerType::new(c, 8).into(),
            Elem::I16 => IntegerType::new(c, 16).into(),
            Elem::I32 => IntegerType::new(c, 32).into(),
            Elem::I64 => IntegerType::new(c, 64).into(),
            Elem::Bf16 => Type::bfloat16(c),
            Elem::F16 => Type::float16(c),
            Elem::F32 => Type::float32(c),
            Elem::F64 => Type::float64(c),
            Elem::Ptr => llvm::r#type::pointer(c, 0),
            Elem::Shared => llvm::r#type::pointer(c, 3),
            Elem::Global => llvm::r#type::pointer(c, 1),
            Elem::Cluster => llvm::r#type::pointer(c, 7),
            Elem::Acc(n) => llvm::r#type::r#struct(c, &vec![Type::float32(c); n as usize], false),
        };
        if ty.lanes == 0 { elem } else { Type::vector(&[ty.lanes as u64], elem) }
    }

    // ---- constants: one operation each per function, in the entry block ----

    fn constant(&self, key: Constant, ty: Ty, attribute: impl FnOnce() -> Attribute<'c>) -> V<'c> {
        if let Some(&v) = self.constants.borrow().get(&key) {
            return v;
        }
        let position = self.constants.borrow().len();
        let operation = self.build("arith.constant", &[], &[ty], &[("value", attribute())], vec![]);
        let v = self.result(self.entry.insert_operation(position, operation), 0, ty);
        self.constants.borrow_mut().insert(key, v);
        v
    }

    /// An integer constant, the same in every lane.
    pub fn iconst(&self, ty: Ty, n: i64) -> V<'c> {
        assert!(!ty.elem.is_float() && !ty.elem.is_pointer(), "integer constant of {ty:?}");
        self.constant(Constant::Int(ty, n), ty, || {
            let scalar: Attribute = IntegerAttribute::new(self.ty(Ty::of(ty.elem)), n).into();
            self.splat_attribute(ty, scalar)
        })
    }

    /// A float constant, the same in every lane.
    pub fn fconst(&self, ty: Ty, x: f64) -> V<'c> {
        assert!(ty.elem.is_float(), "float constant of {ty:?}");
        self.constant(Constant::Float(ty, x.to_bits()), ty, || {
            let scalar: Attribute = FloatAttribute::new(self.context, self.ty(Ty::of(ty.elem)), x).into();
            self.splat_attribute(ty, scalar)
        })
    }

    fn splat_attribute(&self, ty: Ty, scalar: Attribute<'c>) -> Attribute<'c> {
        if ty.lanes == 0 { scalar } else { DenseElementsAttribute::splat(self.ty(ty), scalar).into() }
    }

    /// An i64 constant.
    pub fn i(&self, n: i64) -> V<'c> {
        self.iconst(I64, n)
    }

    /// An f32 constant in 16 lanes.
    pub fn f(&self, x: f64) -> V<'c> {
        self.fconst(F32X16, x)
    }

    /// 0 or 0.0 of any type.
    pub fn zero(&self, ty: Ty) -> V<'c> {
        if ty.elem.is_float() { self.fconst(ty, 0.0) } else { self.iconst(ty, 0) }
    }

    /// i32 lanes `0, 1, 2, ..`.
    pub fn iota(&self, lanes: u32) -> V<'c> {
        let ty = Ty::vec(lanes, Elem::I32);
        let values: Vec<i32> = (0..lanes as i32).collect();
        let attribute = DenseElementsAttribute::i32_values(self.ty(ty), &values);
        self.result(self.op("arith.constant", &[], &[ty], &[("value", attribute.into())]), 0, ty)
    }

    /// i1 lanes: true in the first `n`.
    pub fn first_lanes(&self, lanes: u32, n: u32) -> V<'c> {
        let ty = Ty::vec(lanes, Elem::I1);
        let values: Vec<i32> = (0..lanes).map(|i| (i < n) as i32).collect();
        let attribute = DenseElementsAttribute::bool_values(self.ty(ty), &values);
        self.result(self.op("arith.constant", &[], &[ty], &[("value", attribute.into())]), 0, ty)
    }

    // ---- arithmetic: chosen by element type ----

    fn pair(&self, float: &str, int: &str, a: V<'c>, b: V<'c>) -> V<'c> {
        assert_eq!(a.ty, b.ty, "operands of {int}");
        self.simple(if a.ty.elem.is_float() { float } else { int }, &[a, b], a.ty)
    }
    /// `a + b`
    pub fn add(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.pair("arith.addf", "arith.addi", a, b)
    }
    /// `a - b`
    pub fn sub(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.pair("arith.subf", "arith.subi", a, b)
    }
    /// `a * b`
    pub fn mul(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.pair("arith.mulf", "arith.muli", a, b)
    }
    /// `a / b`; integers signed, towards zero.
    pub fn div(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.pair("arith.divf", "arith.divsi", a, b)
    }
    /// Signed remainder, sign of the dividend.
    pub fn rem(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.pair("arith.remf", "arith.remsi", a, b)
    }
    /// Unsigned quotient.
    pub fn divu(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.divui", &[a, b], a.ty)
    }
    /// Unsigned remainder.
    pub fn remu(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.remui", &[a, b], a.ty)
    }
    /// `a + n`
    pub fn add_n(&self, a: V<'c>, n: i64) -> V<'c> {
        if n == 0 { a } else { self.add(a, self.iconst(a.ty, n)) }
    }
    /// `a * n`
    pub fn mul_n(&self, a: V<'c>, n: i64) -> V<'c> {
        match n {
            0 => self.zero(a.ty),
            1 => a,
            _ => self.mul(a, self.iconst(a.ty, n)),
        }
    }
    /// `a * b + c`, rounded once.
    pub fn fma(&self, a: V<'c>, b: V<'c>, c: V<'c>) -> V<'c> {
        assert!(a.ty == b.ty && b.ty == c.ty, "operands of fma");
        self.simple("math.fma", &[a, b, c], a.ty)
    }
    /// `-a`
    pub fn neg(&self, a: V<'c>) -> V<'c> {
        if a.ty.elem.is_float() { self.simple("arith.negf", &[a], a.ty) } else { self.sub(self.zero(a.ty), a) }
    }
    /// `|a|` of a float.
    pub fn abs(&self, a: V<'c>) -> V<'c> {
        self.simple(if a.ty.elem.is_float() { "math.absf" } else { "math.absi" }, &[a], a.ty)
    }
    /// Correctly rounded square root.
    pub fn sqrt(&self, a: V<'c>) -> V<'c> {
        self.simple("math.sqrt", &[a], a.ty)
    }
    /// Nearest integer, half to even.
    pub fn round_even(&self, a: V<'c>) -> V<'c> {
        self.simple("math.roundeven", &[a], a.ty)
    }
    /// Largest integer not above.
    pub fn floor(&self, a: V<'c>) -> V<'c> {
        self.simple("math.floor", &[a], a.ty)
    }
    /// `|magnitude|` with the sign of `sign`.
    pub fn copysign(&self, magnitude: V<'c>, sign: V<'c>) -> V<'c> {
        self.simple("math.copysign", &[magnitude, sign], magnitude.ty)
    }
    /// The larger; `a` on ties and when either is NaN. On a GPU, f32: one instruction, NaN when either is NaN.
    pub fn max(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        if self.tier.is_gpu() && a.ty.elem == Elem::F32 {
            return self.simple("llvm.intr.maximum", &[a, b], a.ty);
        }
        self.select(self.cmp(Cmp::Gt, b, a), b, a)
    }
    /// The smaller; `a` on ties and when either is NaN. On a GPU, f32: one instruction, NaN when either is NaN.
    pub fn min(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        if self.tier.is_gpu() && a.ty.elem == Elem::F32 {
            return self.simple("llvm.intr.minimum", &[a, b], a.ty);
        }
        self.select(self.cmp(Cmp::Lt, b, a), b, a)
    }
    /// Bits and.
    pub fn and(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.andi", &[a, b], a.ty)
    }
    /// Bits or.
    pub fn or(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.ori", &[a, b], a.ty)
    }
    /// Bits exclusive or.
    pub fn xor(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.xori", &[a, b], a.ty)
    }
    /// Left shift.
    pub fn shl(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.shli", &[a, b], a.ty)
    }
    /// Arithmetic right shift.
    pub fn shr(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.shrsi", &[a, b], a.ty)
    }
    /// Logical right shift.
    pub fn shru(&self, a: V<'c>, b: V<'c>) -> V<'c> {
        self.simple("arith.shrui", &[a, b], a.ty)
    }

    /// Comparison; integers signed.
    pub fn cmp(&self, cmp: Cmp, a: V<'c>, b: V<'c>) -> V<'c> {
        assert_eq!(a.ty, b.ty, "operands of {cmp:?}");
        let float = a.ty.elem.is_float();
        // Numbers of arith::CmpFPredicate and arith::CmpIPredicate.
        let predicate = match (cmp, float) {
            (Cmp::Eq, true) => 1,
            (Cmp::Gt, true) => 2,
            (Cmp::Ge, true) => 3,
            (Cmp::Lt, true) => 4,
            (Cmp::Le, true) => 5,
            (Cmp::Ne, true) => 13,
            (Cmp::Uno, true) => 14,
            (Cmp::Eq, false) => 0,
            (Cmp::Ne, false) => 1,
            (Cmp::Lt, false) => 2,
            (Cmp::Le, false) => 3,
            (Cmp::Gt, false) => 4,
            (Cmp::Ge, false) => 5,
            (Cmp::Ult, false) => 6,
            (Cmp::Uno, false) | (Cmp::Ult, true) => panic!("{cmp:?} of {:?}", a.ty),
        };
        let attribute = IntegerAttribute::new(self.ty(I64), predicate).into();
        let ty = a.ty.with(Elem::I1);
        let name = if float { "arith.cmpf" } else { "arith.cmpi" };
        self.result(self.op(name, &[a, b], &[ty], &[("predicate", attribute)]), 0, ty)
    }

    /// `if c then a else b`, lane by lane (or all lanes if `c` is a scalar).
    pub fn select(&self, c: V<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
        assert_eq!(a.ty, b.ty, "branches of select");
        self.simple("arith.select", &[c, a, b], a.ty)
    }

    // ---- memory ----

    /// Address of element `index` (i64; i32 where that is enough) of an array of `elem`.
    pub fn gep(&self, base: V<'c>, elem: Elem, index: V<'c>) -> V<'c> {
        assert!(base.ty.elem.is_pointer() && (index.ty == I64 || index.ty == I32), "operands of gep");
        self.gep_op(&[base, index], elem, i32::MIN)
    }
    /// Address of element `index` of an array of `elem`.
    pub fn gep_const(&self, base: V<'c>, elem: Elem, index: i64) -> V<'c> {
        match i32::try_from(index) {
            Ok(0) => base,
            Ok(n) => self.gep_op(&[base], elem, n),
            Err(_) => self.gep(base, elem, self.i(index)),
        }
    }
    fn gep_op(&self, operands: &[V<'c>], elem: Elem, constant: i32) -> V<'c> {
        let indices = DenseI32ArrayAttribute::new(self.context, &[constant]).into();
        let elem = TypeAttribute::new(self.ty(Ty::of(elem))).into();
        let attributes = [("rawConstantIndices", indices), ("elem_type", elem)];
        let ty = operands[0].ty;
        self.result(self.op("llvm.getelementptr", operands, &[ty], &attributes), 0, ty)
    }

    /// Loads a scalar or a vector from an address that is a multiple of `align` bytes. GPU code needs it: a vector at an address known
    /// to be aligned as a whole is one access, otherwise one per element.
    pub fn load_aligned(&self, ptr: V<'c>, ty: Ty, align: usize) -> V<'c> {
        let alignment = IntegerAttribute::new(self.ty(I64), align as i64).into();
        self.result(self.op("llvm.load", &[ptr], &[ty], &[("alignment", alignment)]), 0, ty)
    }
    /// Stores to an address that is a multiple of `align` bytes, see [`Emit::load_aligned`].
    pub fn store_aligned(&self, v: V<'c>, ptr: V<'c>, align: usize) {
        let alignment = IntegerAttribute::new(self.ty(I64), align as i64).into();
        self.op("llvm.store", &[v, ptr], &[], &[("alignment", alignment)]);
    }
    /// Loads a scalar or a vector; the address need only be aligned to the element.
    pub fn load(&self, ptr: V<'c>, ty: Ty) -> V<'c> {
        assert!(ptr.ty.elem.is_pointer(), "address of load");
        self.load_aligned(ptr, ty, ty.elem.bytes())
    }
    /// Stores a scalar or a vector.
    pub fn store(&self, v: V<'c>, ptr: V<'c>) {
        assert!(ptr.ty.elem.is_pointer(), "address of store");
        self.store_aligned(v, ptr, v.ty.elem.bytes());
    }
    /// Loads the lanes where `mask` (i1 lanes) is true; `other` elsewhere. 32-bit elements only: x86-64-v3 has no narrower masks.
    pub fn masked_load(&self, ptr: V<'c>, mask: V<'c>, other: V<'c>) -> V<'c> {
        assert_eq!(other.ty.elem.bytes(), 4, "element of masked_load");
        let alignment = IntegerAttribute::new(self.ty(I32), 4).into();
        let op = self.op("llvm.intr.masked.load", &[ptr, mask, other], &[other.ty], &[("alignment", alignment)]);
        self.result(op, 0, other.ty)
    }
    /// Stores the lanes where `mask` is true. 32-bit elements only.
    pub fn masked_store(&self, v: V<'c>, ptr: V<'c>, mask: V<'c>) {
        assert_eq!(v.ty.elem.bytes(), 4, "element of masked_store");
        let alignment = IntegerAttribute::new(self.ty(I32), 4).into();
        self.op("llvm.intr.masked.store", &[v, ptr, mask], &[], &[("alignment", alignment)]);
    }
    /// Asks for the cache line at `ptr` (read, all cache levels).
    pub fn prefetch(&self, ptr: V<'c>) {
        let n = |x| IntegerAttribute::new(self.ty(I32), x).into();
        self.op("llvm.intr.prefetch", &[ptr], &[], &[("rw", n(0)), ("hint", n(3)), ("cache", n(1))]);
    }

    // ---- control ----

    /// `for i in (lo..hi).step_by(step)` with carried values; gives their final values. Bounds are i64 (or all i32).
    pub fn for_(
        &self,
        lo: V<'c>,
        hi: V<'c>,
        step: V<'c>,
        carried: &[V<'c>],
        body: impl FnOnce(&Emit<'c>, V<'c>, &[V<'c>]) -> Vec<V<'c>>,
    ) -> Vec<V<'c>> {
        let tys: Vec<Ty> = carried.iter().map(|v| v.ty).collect();
        let mut arguments = vec![(self.ty(lo.ty), self.location)];
        arguments.extend(tys.iter().map(|&t| (self.ty(t), self.location)));
        let region = Region::new();
        region.append_block(Block::new(&arguments));
        let mut operands = vec![lo, hi, step];
        operands.extend(carried);
        let operation = self.block.append_operation(self.build("scf.for", &operands, &tys, &[], vec![region]));
        let block = operation.region(0).expect("a body").first_block().expect("a block");
        let argument = |i, ty| V { value: block.argument(i).expect("an argument").into(), ty };
        let inner = Emit { block, ..self.clone() };
        let values: Vec<V> = tys.iter().enumerate().map(|(i, &t)| argument(i + 1, t)).collect();
        let next = body(&inner, argument(0, lo.ty), &values);
        assert_eq!(next.iter().map(|v| v.ty).collect::<Vec<_>>(), tys, "carried types");
        inner.op("scf.yield", &next, &[], &[]);
        tys.iter().enumerate().map(|(i, &t)| self.result(operation, i, t)).collect()
    }

    /// A loop over constants without carried values.
    pub fn each(&self, lo: i64, hi: i64, step: i64, body: impl FnOnce(&Emit<'c>, V<'c>)) {
        self.for_(self.i(lo), self.i(hi), self.i(step), &[], |e, i, _| {
            body(e, i);
            vec![]
        });
    }

    /// `if c { then } else { otherwise }` with results of the given types.
    pub fn if_(
        &self,
        c: V<'c>,
        tys: &[Ty],
        then: impl FnOnce(&Emit<'c>) -> Vec<V<'c>>,
        otherwise: impl FnOnce(&Emit<'c>) -> Vec<V<'c>>,
    ) -> Vec<V<'c>> {
        let regions = (0..2)
            .map(|_| {
                let region = Region::new();
                region.append_block(Block::new(&[]));
                region
            })
            .collect();
        let operation = self.block.append_operation(self.build("scf.if", &[c], tys, &[], regions));
        let inside =
            |i| Emit { block: operation.region(i).expect("a branch").first_block().expect("a block"), ..self.clone() };
        let e = inside(0);
        e.op("scf.yield", &then(&e), &[], &[]);
        let e = inside(1);
        e.op("scf.yield", &otherwise(&e), &[], &[]);
        tys.iter().enumerate().map(|(i, &t)| self.result(operation, i, t)).collect()
    }

    /// `if c { then }`.
    pub fn when(&self, c: V<'c>, then: impl FnOnce(&Emit<'c>)) {
        self.if_(
            c,
            &[],
            |e| {
                then(e);
                vec![]
            },
            |_| vec![],
        );
    }

    /// A boolean attribute, for [`Emit::op`].
    pub fn bool_attribute(&self, b: bool) -> Attribute<'c> {
        BoolAttribute::new(self.context, b).into()
    }
}
