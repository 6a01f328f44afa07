/**
 * Gives koffi's calls off the JS thread the stack that a compiler needs. Import it before the helpers that load libraries with
 * koffi. The native runtime does the same for a program that loads nothing before it.
 */
import koffi from "koffi"

koffi.config({ async_stack_size: 16 * 1024 * 1024 })
