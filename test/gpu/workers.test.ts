/**
 * Worker threads on a GPU that end without releasing their runtimes, and more loads and allocations at once than there are pool
 * threads. The child runs from its TypeScript source, which needs Node.js 22.18 or later, and uses the built package.
 */
import { describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { gpu } from "../support/gpu.ts"

const child = fileURLToPath(new URL("./workers.child.ts", import.meta.url))
const built = fileURLToPath(new URL("../../dist/index.js", import.meta.url))
const canRun = gpu !== undefined && "typescript" in process.features && existsSync(built)

/** Runs the child, which must print what is expected and end normally. Fails with everything that it printed. */
const prints = (how: string, expected: string) =>
  new Promise<void>((resolve, reject) => {
    execFile(process.execPath, [child, how], { timeout: 60_000 }, (error, output, errors) => {
      if (error === null && output === expected) resolve()
      else reject(new Error(`ended with ${error?.code ?? error?.signal ?? 0}: ${output}${errors}`))
    })
  })

describe.skipIf(!canRun)("a worker thread on a GPU", () => {
  for (const how of ["terminate", "exit", "throw"]) {
    it(
      `that ends by ${how} while copies use its pinned memory leaves the data of others alone`,
      () => prints(how, "[true,true,true]"),
      60_000
    )
  }

  it(
    "that is terminated right after it released its runtime ends alone",
    () => prints("released", "[true,true,true]"),
    60_000
  )
})

describe.skipIf(!canRun)("300 loads and 300 pinned allocations at once on a GPU", () => {
  it("succeed, and leave nothing", () => prints("many", "[300,300,0,0]"), 60_000)
})
