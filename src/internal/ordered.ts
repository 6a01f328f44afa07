/**
 * What a region says of buffers that order themselves: whether those made in it do, and the access that it is part of.
 */
import * as Context from "effect/Context"
import type { MemoryAccess } from "../layers/CudaRuntime.ts"

/** Whether buffers that are allocated order themselves. */
export const CurrentOrdering = Context.Reference<boolean>("effect-cuda/CurrentOrdering", {
  defaultValue: () => false
})

/** The innermost access in progress around an effect. */
export const CurrentAccess = Context.Reference<MemoryAccess | undefined>("effect-cuda/CurrentAccess", {
  defaultValue: () => undefined
})
