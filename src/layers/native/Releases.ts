/**
 * Releases that wait on the host until streams no longer use a resource, because the driver would otherwise block the
 * thread, or because the wait could not be enqueued.
 */
import { success } from "../../cuda/status.ts"
import { reasonFromStatus } from "../../CudaError.ts"
import type { StreamResource } from "../shared/resources.ts"
import { watchAll } from "../shared/waits.ts"
import type { NativeStreams } from "./streams.ts"

/** Delay before a failed wait is retried, in milliseconds. */
const retryDelay = 10

export class Releases {
  readonly #streams: NativeStreams
  readonly #pending = new Set<() => void>()

  constructor(streams: NativeStreams) {
    this.#streams = streams
  }

  /** Runs a release once the current work of the streams has finished, at the latest when the runtime is released. */
  whenIdle(users: ReadonlyArray<StreamResource>, release: () => void): void {
    const once = () => {
      if (this.#pending.delete(once)) release()
    }
    this.#pending.add(once)
    const attempt = () => {
      if (!this.#pending.has(once)) return
      // A stream released since the last attempt was drained first.
      const pending = users.filter(({ state }) => state !== "released")
      const watch = watchAll(pending.map((user) => (onDone) => this.#streams.watch(user, onDone)))
      watch((status) => {
        if (status === success || reasonFromStatus(status).isSticky) return once()
        setTimeout(attempt, retryDelay).unref()
      }, {})
    }
    attempt()
  }

  /** Runs the remaining releases. Call after all work has ended. */
  close(): void {
    for (const release of this.#pending) release()
  }
}
