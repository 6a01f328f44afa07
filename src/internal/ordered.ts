/**
 * The settings of a region for ordered buffers: whether buffers allocated in it are ordered, and the enclosing access.
 */
import * as Context from "effect/Context"
import type { MemoryAccess } from "../layers/CudaRuntime.ts"

/** Whether newly allocated buffers are ordered. */
export const CurrentOrdering = Context.Reference<boolean>("effect-cuda/CurrentOrdering", {
  defaultValue: () => false
})

/** The innermost access in progress around an effect. */
export const CurrentAccess = Context.Reference<MemoryAccess | undefined>("effect-cuda/CurrentAccess", {
  defaultValue: () => undefined
})
