/**
 * Where the demo's bytes come from: something of a known length that can be read anywhere. `openFile` is the real one;
 * tests bring their own.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type FileHandle, open, stat } from "node:fs/promises"

export interface Source {
  readonly name: string
  readonly byteLength: number
  /** Fills `into` with the bytes from `offset` on. Nothing may write to `into` once this has ended, however it ended. */
  readonly read: (into: Uint8Array, offset: number) => Effect.Effect<void, FileProblem>
}

/** A file that cannot be streamed, and what is the matter with it. */
export class FileProblem extends Data.TaggedError("FileProblem")<{
  readonly path: string
  readonly problem: string
}> {
  override get message(): string {
    return `${this.path}: ${this.problem}`
  }
}

/** Opens a file for as long as the scope lives. */
export const openFile = (path: string): Effect.Effect<Source, FileProblem, Scope.Scope> =>
  Effect.gen(function*() {
    // Asked before the file is opened: opening a named pipe would wait for its other end.
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

// A read cannot be called back, and it writes to pinned memory on a thread of its own. So an interruption waits for it:
// the buffer must not be released before.
const readFully = (path: string, file: FileHandle, into: Uint8Array, offset: number) =>
  Effect.uninterruptible(Effect.gen(function*() {
    let done = 0
    while (done < into.byteLength) {
      const { bytesRead } = yield* attempt(path, () => file.read(into, done, into.byteLength - done, offset + done))
      if (bytesRead === 0) return yield* new FileProblem({ path, problem: "became shorter while it was read" })
      done += bytesRead
    }
  }))

const attempt = <A>(path: string, run: () => Promise<A>): Effect.Effect<A, FileProblem> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => new FileProblem({ path, problem: describe(cause) })
  })

const describe = (cause: unknown): string => {
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : ""
  return problems[code] ?? (cause instanceof Error ? cause.message : String(cause))
}

const problems: Record<string, string> = {
  ENOENT: "there is no such file",
  ENOTDIR: "there is no such file",
  EACCES: "may not be read",
  EPERM: "may not be read",
  EISDIR: "is a directory",
  EIO: "cannot be read: input/output error"
}
