/**
 * What the stub libraries that enqueue through a driver have in common.
 */
import koffi from "koffi"
import type { LibraryHandle } from "koffi"

/** Binds functions of a library, those that all stubs have and others. */
export const bindStub = <Others extends object>(path: string, others: (bound: Bound) => Others) => {
  const library = koffi.load(path)
  const bound: Bound = (name, result, parameters) => library.func(name, result, [...parameters])
  return {
    reset: bound("stub_reset", "void", ["uint64_t", "uint64_t"]),
    log: bound("stub_log", "str", []),
    logClear: bound("stub_log_clear", "void", []),
    misuse: bound("stub_misuse", "str", []),
    setDelay: bound("stub_set_delay", "void", ["int"]),
    ...others(bound)
  }
}

type Bound = (
  name: string,
  result: string,
  parameters: ReadonlyArray<string>
) => ReturnType<LibraryHandle["func"]>

/** The address of a function; 0 if the library has none of that name. */
export const addressOf = (path: string, name: string): number => {
  try {
    return Number(koffi.load(path).symbol(name))
  } catch {
    return 0
  }
}

export const linesOf = (text: string): ReadonlyArray<string> => text.split("\n").filter((line) => line !== "")

const kept: Array<object> = []

/** Libraries that nothing refers to are unloaded, and loaded again without the functions they were given. */
export const keepLoaded = (stub: object): void => void kept.push(stub)
