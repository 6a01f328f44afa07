/**
 * Worker threads on a GPU that end without releasing their runtimes, and more loads and allocations at once than there are pool
 * threads. The child runs from its TypeScript source, which needs Node.js 22.18 or later, and uses the built package.
 */
import { assert, describe, it } from "@effect/vitest"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { gpu } from "../support/gpu.ts"

const child = fileURLToPath(new URL("./workers.child.ts", import.meta.url))
const built = fileURLToPath(new URL("../../dist/index.js", import.meta.url))
const canRun = gpu !== undefined && "typescript" in process.features && existsSync(built)

/** How the child ended, and what it printed. As text, which a failing assertion prints whole. */
const run = (how: string) =>
  new Promise<string>((resolve) => {
    execFile(
      process.execPath,
      [child, how],
      { timeout: 60_000 },
      (error, output, errors) =>
        resolve(error === null ? output : `${output}ended with ${error.code ?? error.signal}: ${errors}`)
    )
  })

describe.skipIf(!canRun)("a worker thread on a GPU", () => {
  for (const how of ["terminate", "exit", "throw"]) {
    it(`that ends by ${how} while copies use its pinned memory leaves the data of others alone`, async () => {
      assert.strictEqual(await run(how), "[true,true,true]")
    }, 60_000)
  }

  it("that is terminated right after it released its runtime ends alone", async () => {
    assert.strictEqual(await run("released"), "[true,true,true]")
  }, 60_000)
})

describe.skipIf(!canRun)("300 loads and 300 pinned allocations at once on a GPU", () => {
  it("succeed, and leave nothing", async () => {
    assert.strictEqual(await run("many"), "[300,300,0,0]")
  }, 60_000)
})
