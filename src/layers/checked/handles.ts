/**
 * Ordered handles of libraries: calls with one come after each other, on whatever streams and with whatever memory.
 */
import { HandleResource, ownHandle } from "../shared/resources.ts"
import type { Point, Timeline, Timelines } from "./timelines.ts"

/** The point after the last use of each handle. */
export class OrderedHandles {
  readonly #timelines: Timelines
  readonly #last = new WeakMap<HandleResource, Point>()
  constructor(timelines: Timelines) {
    this.#timelines = timelines
  }

  /** Makes work come after the earlier uses of its handles. */
  wait(timeline: Timeline, handles: ReadonlyArray<HandleResource>): void {
    for (const handle of handles) {
      const last = this.#last.get(handle)
      if (last !== undefined) this.#timelines.wait(timeline, last)
    }
  }

  used(timeline: Timeline, handles: ReadonlyArray<HandleResource>): void {
    if (handles.length === 0) return
    const point = this.#timelines.pointOf(timeline)
    for (const handle of handles) this.#last.set(handle, point)
  }
}

/** The ordered handles among the arguments of a call. */
export const orderedAmong = (values: ReadonlyArray<unknown>): ReadonlyArray<HandleResource> => {
  const handles: Array<HandleResource> = []
  for (const value of values) {
    const ref = typeof value === "object" && value !== null && "ref" in value ? value.ref : value
    const own = typeof ref === "object" && ref !== null ? ownHandle(ref as HandleResource) : undefined
    if (own instanceof HandleResource && own.ordering !== undefined) handles.push(own)
  }
  return handles
}
