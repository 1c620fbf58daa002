//! Modules and their functions: where writing a kernel begins.
//!
//! *Takes* a context and a tier; *gives* a module with one function per kernel, and the insertion point of each; *promises* nothing but plain `llvm.func`.

use super::*;

/// A module under construction.
pub struct Unit<'c> {
    context: &'c Context,
    module: Module<'c>,
    tier: Tier,
}

impl<'c> Unit<'c> {
    /// An empty module for kernels of one tier.
    pub fn new(context: &'c Context, tier: Tier) -> Self {
        Unit { context, module: Module::new(Location::unknown(context)), tier }
    }

    /// The finished module.
    pub fn module(self) -> Module<'c> {
        self.module
    }

    fn parse<'a>(&'a self, text: &str) -> Attribute<'a> {
        Attribute::parse(self.context, text).unwrap_or_else(|| panic!("{text} does not parse"))
    }

    /// Adds a function without result, whose body `body` writes given the insertion point and the parameters. Parameters are pointers (all PTR to the
    /// body, whatever their address space) and integers, with the attributes given; `more` are attributes of the function.
    fn function<F>(&self, symbol: &str, parameters: &[(Type<'_>, Ty, &str)], more: &[(&str, &str)], body: F)
    where
        F: for<'a> FnOnce(&Emit<'a>, &[V<'a>]),
    {
        let context = self.context;
        let location = Location::unknown(context);
        let types: Vec<Type> = parameters.iter().map(|p| p.0).collect();
        let attributes: Vec<Attribute> = parameters.iter().map(|p| self.parse(p.2)).collect();
        let ty = llvm::r#type::function(llvm::r#type::void(context), &types, false);
        let region = Region::new();
        region.append_block(Block::new(&types.iter().map(|&t| (t, location)).collect::<Vec<_>>()));
        let named = |name, attribute| (Identifier::new(context, name), attribute);
        let mut all = vec![
            named("sym_name", StringAttribute::new(context, symbol).into()),
            named("function_type", TypeAttribute::new(ty).into()),
            named("linkage", self.parse("#llvm.linkage<external>")),
            named("CConv", self.parse("#llvm.cconv<ccc>")),
            named("arg_attrs", ArrayAttribute::new(context, &attributes).into()),
        ];
        all.extend(more.iter().map(|(name, text)| named(name, self.parse(text))));
        let operation = OperationBuilder::new("llvm.func", location)
            .add_attributes(&all)
            .add_regions([region])
            .build()
            .expect("llvm.func builds");
        let function = self.module.body().append_operation(operation);
        let block = function.region(0).expect("a body").first_block().expect("an entry block");
        let e = Emit {
            context,
            block,
            entry: block,
            location,
            tier: self.tier,
            approximate: self.tier.is_gpu(),
            constants: Rc::new(RefCell::new(HashMap::new())),
        };
        let argument = |(i, p): (usize, &(Type, Ty, &str))| V {
            value: block.argument(i).expect("as many as declared").into(),
            ty: p.1,
        };
        let arguments: Vec<V> = parameters.iter().enumerate().map(argument).collect();
        body(&e, &arguments);
        e.op("llvm.return", &[], &[], &[]);
    }

    /// Adds the kernel function `void symbol(i64 task, ptr args, ptr scratch)`. `body` receives the insertion point, the task number, the
    /// argument pointers already loaded (there are `args` of them) and the scratch pointer.
    pub fn kernel<F>(&self, symbol: &str, args: usize, body: F)
    where
        F: for<'a> FnOnce(&Emit<'a>, V<'a>, &[V<'a>], V<'a>),
    {
        let private = (llvm::r#type::pointer(self.context, 0), PTR, "{llvm.noalias, llvm.nocapture}");
        let task = (Type::from(IntegerType::new(self.context, 64)), I64, "{}");
        self.function(symbol, &[task, private, private], &[], |e, parameters| {
            let load = |i| e.load(e.gep_const(parameters[1], Elem::Ptr, i as i64), PTR);
            let pointers: Vec<V> = (0..args).map(load).collect();
            body(e, parameters[0], &pointers, parameters[2]);
        });
    }

    /// Adds operations to the module's body from MLIR text attributes: globals of shared memory.
    pub(in crate::mlir) fn global(&self, attributes: &[(&str, &str)]) {
        let named: Vec<_> = attributes.iter().map(|(k, v)| (Identifier::new(self.context, k), self.parse(v))).collect();
        let operation = OperationBuilder::new("llvm.mlir.global", Location::unknown(self.context))
            .add_attributes(&named)
            .add_regions([Region::new()])
            .build()
            .expect("llvm.mlir.global builds");
        self.module.body().append_operation(operation);
    }

    /// Adds a GPU kernel: parameters are `args` pointers to global memory, then `maps` tensor maps by value; blocks have `threads` threads.
    /// `body` receives the insertion point, the pointers (generic), and the maps' addresses.
    pub fn gpu_kernel<F>(&self, symbol: &str, args: usize, maps: usize, threads: u32, body: F)
    where
        F: for<'a> FnOnce(&Emit<'a>, &[V<'a>], &[V<'a>]),
    {
        self.gpu_kernel_shared(symbol, args, maps, (threads, 1), body);
    }

    /// As [`Unit::gpu_kernel`], with so few registers that as many `blocks` fit a multiprocessor.
    pub(in crate::mlir) fn gpu_kernel_shared<F>(
        &self,
        symbol: &str,
        args: usize,
        maps: usize,
        (threads, blocks): (u32, u32),
        body: F,
    ) where
        F: for<'a> FnOnce(&Emit<'a>, &[V<'a>], &[V<'a>]),
    {
        let pointer = |space| llvm::r#type::pointer(self.context, space);
        let global = (pointer(1), PTR, "{llvm.noalias, llvm.align = 16 : i64}");
        let map = (pointer(0), PTR, "{llvm.byval = !llvm.array<128 x i8>, llvm.align = 64 : i64, nvvm.grid_constant}");
        let parameters = [vec![global; args], vec![map; maps]].concat();
        let (threads, blocks) = (format!("array<i32: {threads}>"), format!("{blocks} : i32"));
        let more = [("nvvm.kernel", "unit"), ("nvvm.reqntid", &threads), ("nvvm.minctasm", &blocks)];
        self.function(symbol, &parameters, &more, |e, parameters| {
            let (pointers, maps) = parameters.split_at(args);
            let pointers: Vec<V> = pointers.iter().map(|&p| e.simple("llvm.addrspacecast", &[p], PTR)).collect();
            body(e, &pointers, maps);
        });
    }
}
