/**
 * The source of the demo's bytes: something of known length with random access. `openFile` is the real one; tests
 * provide others.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type FileHandle, open, stat } from "node:fs/promises"

export interface Source {
  readonly name: string
  readonly byteLength: number
  /**
   * Fills `into` with the bytes at `offset`. Must not write to `into` after the effect has ended, for whatever reason.
   */
  readonly read: (into: Uint8Array, offset: number) => Effect.Effect<void, FileProblem>
}

/** A file that cannot be streamed, and the reason. */
export class FileProblem extends Data.TaggedError("FileProblem")<{
  readonly path: string
  readonly problem: string
}> {
  override get message(): string {
    return `${this.path}: ${this.problem}`
  }
}

/** Opens a file in a scope. */
export const openFile = (path: string): Effect.Effect<Source, FileProblem, Scope.Scope> =>
  Effect.gen(function*() {
    // Checked before opening the file: opening a named pipe would block until its other end is opened.
    const status = yield* attempt(path, () => stat(path))
    if (status.isDirectory()) return yield* new FileProblem({ path, problem: "is a directory" })
    if (!status.isFile()) return yield* new FileProblem({ path, problem: "is not a regular file" })
    if (status.size === 0) return yield* new FileProblem({ path, problem: "is empty" })
    const file = yield* Effect.acquireRelease(
      attempt(path, () => open(path)),
      (opened) => Effect.promise(() => opened.close())
    )
    return { name: path, byteLength: status.size, read: (into, offset) => readFully(path, file, into, offset) }
  })

// A read cannot be cancelled, and writes to pinned memory from a pool thread. So interruption waits for it: the buffer
// must not be
// released before.
const readFully = (path: string, file: FileHandle, into: Uint8Array, offset: number) =>
  Effect.uninterruptible(Effect.gen(function*() {
    let done = 0
    while (done < into.byteLength) {
      const { bytesRead } = yield* attempt(path, () => file.read(into, done, into.byteLength - done, offset + done))
      if (bytesRead === 0) return yield* new FileProblem({ path, problem: "was truncated while it was being read" })
      done += bytesRead
    }
  }))

/** Runs a promise of the file system. */
export const attempt = <A>(path: string, run: () => Promise<A>): Effect.Effect<A, FileProblem> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => new FileProblem({ path, problem: describe(cause) })
  })

const describe = (cause: unknown): string => {
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : ""
  return problems[code] ?? (cause instanceof Error ? cause.message : String(cause))
}

const problems: Record<string, string> = {
  ENOENT: "no such file",
  ENOTDIR: "no such file",
  EACCES: "permission denied",
  EPERM: "permission denied",
  EISDIR: "is a directory",
  EIO: "input/output error"
}
