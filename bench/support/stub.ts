/**
 * A driver for benchmarks on machines without a GPU: the tests' stub driver, with the calls that benchmarks repeat
 * replaced by ones that return immediately (`fastDriver.c`), so that only the overhead of calling the driver is
 * measured.
 */
import { spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const fast = fileURLToPath(new URL("./fastDriver.c", import.meta.url))
const nccl = fileURLToPath(new URL("./fastNccl.c", import.meta.url))
const stub = fileURLToPath(new URL("../../test/support/stub/driver.c", import.meta.url))

type Built = { readonly path: string } | { readonly problem: string }

const options = ["-O2", "-fPIC", "-pthread"]

const makeFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Builds NCCL without a GPU (`fastNccl.c`). */
export const buildStubNccl = (): Built => {
  const path = join(makeFolder(), "libnccl-stub.so")
  const problem = compile([...options, "-shared", nccl, "-o", path])
  return problem === undefined ? { path } : { problem }
}

/** Builds the driver, which exists until the process ends. Returns the reason if it cannot. */
export const buildStub = (devices = 1): Built => {
  const folder = makeFolder()
  const object = join(folder, "stub.o")
  const path = join(folder, "libcuda-stub.so")
  const problem = compile([...options, `-DSTUB_DEVICES=${devices}`, ...renames(), "-c", stub, "-o", object]) ??
    compile([...options, "-shared", fast, object, "-o", path])
  return problem === undefined ? { path } : { problem }
}

/** Renames the replaced calls in the stub. */
const renames = (): ReadonlyArray<string> =>
  Array.from(
    readFileSync(fast, "utf8").matchAll(/^EXPORT Status (\w+)\(/gm),
    ([, name]) => `-D${name}=slow_${name}`
  )

const compile = (parameters: ReadonlyArray<string>): string | undefined => {
  const { error, status, stderr } = spawnSync("cc", parameters, { encoding: "utf8" })
  return status === 0 ? undefined : `the stub driver needs a C compiler: ${error?.message ?? stderr}`
}
