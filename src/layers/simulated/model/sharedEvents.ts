/**
 * The interprocess events of this process: what their handles open, for every simulated runtime in it.
 */
import { ipcHandleSize } from "../../../cuda/flags.ts"
import type { Owner } from "../../shared/resources.ts"
import type { EventState } from "./parts.ts"
import type { World } from "./World.ts"

/** An event that a handle stands for, the world its records happen in, and the runtime that made it. */
export interface SharedEvent {
  readonly event: EventState
  readonly world: World
  readonly owner: Owner
}

const shared = new Map<string, SharedEvent>()

/** Tells this process's handles from those of another one. */
const processMark = crypto.getRandomValues(new Uint8Array(16))
let exported = 0

/** Writes a new handle for an event, and keeps the event reachable by it; the key ends that. */
export const exportEvent = (event: SharedEvent, into: Uint8Array): string => {
  into.fill(0)
  into.set(new TextEncoder().encode("effect-cuda event"), 0)
  into.set(processMark, 24)
  new DataView(into.buffer, into.byteOffset, ipcHandleSize).setFloat64(40, ++exported)
  const key = keyOf(into)
  shared.set(key, event)
  return key
}

/** What a handle of this process stands for, while the event it was made from lives. */
export const openEvent = (handle: Uint8Array): SharedEvent | undefined => shared.get(keyOf(handle))

export const withdrawEvent = (key: string): void => {
  shared.delete(key)
}

const keyOf = (handle: Uint8Array): string => Array.from(handle, (byte) => byte.toString(16).padStart(2, "0")).join("")
