/**
 * How much memory JavaScript holds once what is unreachable is gone.
 */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"

// The function of the flag is only in contexts that are made after it is set.
setFlagsFromString("--expose-gc")
const collect: () => void = runInNewContext("gc")

/** Bytes on the heap, and outside it but held by objects on it. */
export interface Held {
  readonly heap: number
  readonly external: number
}

export const readHeld = (): Held => {
  collect()
  // What finalizers let go is found by the second collection.
  collect()
  const { external, heapUsed } = process.memoryUsage()
  return { heap: heapUsed, external }
}

export const heldSince = (before: Held): Held => {
  const { external, heap } = readHeld()
  return { heap: heap - before.heap, external: external - before.external }
}
