/**
 * The exported interprocess events of all simulated runtimes in this process, by handle.
 */
import { ipcHandleSize } from "../../../cuda/flags.ts"
import type { Owner } from "../../shared/resources.ts"
import type { EventState } from "./parts.ts"
import type { World } from "./World.ts"

/** An exported event, the world of its records, and the runtime that created it. */
export interface SharedEvent {
  readonly event: EventState
  readonly world: World
  readonly owner: Owner
}

const shared = new Map<string, SharedEvent>()

/** Distinguishes the handles of this process from those of others. */
const processMark = crypto.getRandomValues(new Uint8Array(16))
let exported = 0

/** Exports an event: writes a new handle for it, and returns the key for `withdrawEvent`. */
export const exportEvent = (event: SharedEvent, into: Uint8Array): string => {
  into.fill(0)
  into.set(new TextEncoder().encode("effect-cuda event"), 0)
  into.set(processMark, 24)
  new DataView(into.buffer, into.byteOffset, ipcHandleSize).setFloat64(40, ++exported)
  const key = keyOf(into)
  shared.set(key, event)
  return key
}

/** The event of a handle; undefined if it was withdrawn or belongs to another process. */
export const openEvent = (handle: Uint8Array): SharedEvent | undefined => shared.get(keyOf(handle))

export const withdrawEvent = (key: string): void => {
  shared.delete(key)
}

const keyOf = (handle: Uint8Array): string => Array.from(handle, (byte) => byte.toString(16).padStart(2, "0")).join("")
