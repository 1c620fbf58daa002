//! From a module of `scf`/`arith`/`vector`/`math`/`llvm` operations to the LLVM dialect.
//!
//! *Takes* a [`Context`] made by [`context`]; *gives* verification, printing and lowering with every MLIR diagnostic turned into an
//! error text; *promises* that nothing is printed to stderr.

use std::cell::RefCell;
use std::rc::Rc;

use super::tier::Tier;
use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::ir::operation::OperationLike;
use melior::pass::PassManager;
use melior::utility::{
    parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes,
};

/// Lowers CPU kernels; no memref, func or affine occurs in them.
pub const CPU: &str = "builtin.module(canonicalize,cse,convert-scf-to-cf,convert-vector-to-llvm{enable-x86vector=true},\
    convert-math-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

/// Lowers GPU kernels: the same operations and those of the `nvvm` dialect.
pub const GPU: &str = "builtin.module(canonicalize,cse,convert-scf-to-cf,convert-vector-to-llvm,\
    convert-math-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,convert-nvvm-to-llvm,reconcile-unrealized-casts)";

/// A single-threaded context with every dialect registered and those of the CPU kernels loaded. One per worker thread.
pub fn context() -> Context {
    register_all_passes();
    let registry = DialectRegistry::new();
    register_all_dialects(&registry);
    let context = Context::new_with_registry(&registry, false);
    register_all_llvm_translations(&context);
    for dialect in ["arith", "cf", "llvm", "math", "nvvm", "scf", "vector", "x86vector"] {
        context.get_or_load_dialect(dialect);
    }
    context
}

/// Runs `work`, collecting the diagnostics it causes; they become the error text when it fails.
fn with_diagnostics<T>(context: &Context, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let messages = Rc::new(RefCell::new(Vec::<String>::new()));
    let sink = messages.clone();
    let handler = context.attach_diagnostic_handler(move |diagnostic| {
        sink.borrow_mut().push(diagnostic.to_string());
        true
    });
    let result = work();
    context.detach_diagnostic_handler(handler);
    result.map_err(|what| match messages.borrow().join("; ") {
        why if why.is_empty() => what,
        why => format!("{what}: {why}"),
    })
}

/// Parses MLIR text (tests, and modules that come from outside).
pub fn parse<'c>(context: &'c Context, text: &str) -> Result<Module<'c>, String> {
    with_diagnostics(context, || Module::parse(context, text).ok_or_else(|| "mlir does not parse".to_string()))
}

/// Verifies a module.
pub fn verify(context: &Context, module: &Module) -> Result<(), String> {
    with_diagnostics(context, || match module.as_operation().verify() {
        true => Ok(()),
        false => Err("mlir does not verify".to_string()),
    })
}

/// Runs a textual pass pipeline.
pub fn run(context: &Context, module: &mut Module, pipeline: &str) -> Result<(), String> {
    with_diagnostics(context, || {
        let manager = PassManager::new(context);
        parse_pass_pipeline(manager.as_operation_pass_manager(), pipeline).map_err(|e| e.to_string())?;
        manager.run(module).map_err(|_| "mlir passes failed".to_string())
    })
}

/// Lowers a kernel module to the LLVM dialect (and, for a GPU, its intrinsics).
pub fn lower(context: &Context, module: &mut Module, tier: Tier) -> Result<(), String> {
    run(context, module, if tier.is_gpu() { GPU } else { CPU })
}
