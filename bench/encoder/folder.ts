/**
 * A folder for the weights, which is removed with the scope.
 */
import * as Effect from "effect/Effect"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

export const folder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)
