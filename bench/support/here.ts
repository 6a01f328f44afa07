/**
 * Loops of driver calls in C within this process (`here.c`), or nothing if there is no C compiler.
 */
import koffi from "koffi"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import type { Driver } from "./driver.ts"
import { compile } from "./peer.ts"

/** Each returns nanoseconds per launch. */
export interface Here {
  readonly launch: (exec: number, stream: number, count: number) => number
  /** Rebinds all nodes before each launch, with the parameters at one address or the other in turn. */
  readonly rebind: (
    exec: number,
    stream: number,
    nodes: BigUint64Array,
    size: number,
    one: number,
    other: number,
    count: number
  ) => number
}

export const openHere = ({ libraryPath }: Driver): Here | undefined => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-bench-"))
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }))
  const path = join(folder, "libhere.so")
  const problem = compile(fileURLToPath(new URL("./here.c", import.meta.url)), path, ["-shared", "-fPIC"])
  if (problem !== undefined) return undefined
  const library = koffi.load(path)
  const open = library.func("int here_open(str path)")
  if (open(libraryPath ?? "libcuda.so.1") !== 0) return undefined
  return {
    launch: library.func("double here_launch(uint64_t, uint64_t, int)"),
    rebind: library.func("double here_rebind(uint64_t, uint64_t, void *, int, uint64_t, uint64_t, int)")
  }
}
