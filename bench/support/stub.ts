/**
 * A driver for benchmarks on machines without a GPU: the stub driver of the tests, with the calls that benchmarks repeat
 * replaced by ones that return at once (`fastDriver.c`), so that what is measured is the way to the driver and back.
 */
import { spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const fast = fileURLToPath(new URL("./fastDriver.c", import.meta.url))
const stub = fileURLToPath(new URL("../../test/support/stub/driver.c", import.meta.url))

/** Builds the library, which is there until the process ends, or says why it cannot. */
export const buildStub = (): { readonly path: string } | { readonly problem: string } => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
  const object = join(folder, "stub.o")
  const path = join(folder, "libcuda-stub.so")
  const options = ["-O2", "-fPIC", "-pthread"]
  const problem = compile([...options, ...renames(), "-c", stub, "-o", object]) ??
    compile([...options, "-shared", fast, object, "-o", path])
  return problem === undefined ? { path } : { problem }
}

/** What is replaced keeps another name in the stub. */
const renames = (): ReadonlyArray<string> =>
  Array.from(
    readFileSync(fast, "utf8").matchAll(/^EXPORT Status (\w+)\(/gm),
    ([, name]) => `-D${name}=slow_${name}`
  )

const compile = (parameters: ReadonlyArray<string>): string | undefined => {
  const { error, status, stderr } = spawnSync("cc", parameters, { encoding: "utf8" })
  return status === 0 ? undefined : `the stub driver needs a C compiler: ${error?.message ?? stderr}`
}
