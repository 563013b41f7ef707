"""Loop IR as C: `emit.emit_kernel` writes a kernel, `prelude.prelude` the helpers it calls, `flags` how to compile."""
