/**
 * Makes examples use the library's sources, as benchmarks do, instead of what was built from them. Import it first, and the examples
 * dynamically.
 */
import { registerHooks } from "node:module"

const library = new URL("../../src/index.ts", import.meta.url).href

registerHooks({
  resolve: (specifier, context, next) => next(specifier === "effect-cuda" ? library : specifier, context)
})
