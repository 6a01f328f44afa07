/**
 * The memory that JavaScript holds after garbage collection.
 */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

// The flag's function exists only in contexts created after the flag is set.
setFlagsFromString("--expose-gc")
const collect: () => void = runInNewContext("gc")

/** Bytes on the heap, and off the heap but held by objects on it. */
export interface Held {
  readonly heap: number
  readonly external: number
}

export const readHeld = (): Held => {
  collect()
  // The second collection frees what finalizers released.
  collect()
  const { external, heapUsed } = process.memoryUsage()
  return { heap: heapUsed, external }
}

export const heldSince = (before: Held): Held => {
  const { external, heap } = readHeld()
  return { heap: heap - before.heap, external: external - before.external }
}
