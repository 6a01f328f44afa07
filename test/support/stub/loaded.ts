/**
 * What the stub libraries that enqueue through a driver have in common.
 */
import koffi from "koffi"
import type { LibraryHandle } from "koffi"
import { buildLibrary } from "./build.ts"

/** Binds functions of a library, those that all stubs have and others. */
const bindStub = <Others extends object>(path: string, others: (bound: Bound) => Others) => {
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

export type Bound = (
  name: string,
  result: string,
  parameters: ReadonlyArray<string>
) => ReturnType<LibraryHandle["func"]>

/** The address of a function; 0 if the library has none of that name. */
const addressOf = (path: string, name: string): number => {
  try {
    return Number(koffi.load(path).symbol(name))
  } catch {
    return 0
  }
}

export const linesOf = (text: string): ReadonlyArray<string> => text.split("\n").filter((line) => line !== "")

/** Libraries that nothing refers to are unloaded, and loaded again without the functions they were given. */
const kept: Array<object> = []

/** Where a stub is built from: its source, its name, and macros. */
export interface StubSource {
  readonly file: string
  readonly name: string
  readonly macros?: ReadonlyArray<string>
}

/** One loaded stub, which enqueues through a driver. */
export class LoadedStub<Others extends object> {
  readonly path: string
  readonly #driver: string
  protected readonly control: ReturnType<typeof bindStub<Others>>

  constructor(driver: string, { file, macros = [], name }: StubSource, others: (bound: Bound) => Others) {
    this.path = buildLibrary(file, name, macros)
    this.#driver = driver
    this.control = bindStub(this.path, others)
    this.reset()
    kept.push(this)
  }

  reset(): void {
    this.control.reset(addressOf(this.#driver, "cuMemsetD8Async"), addressOf(this.#driver, "stub_current"))
  }

  /** The calls, each followed by " off" if it was made off the JS thread, and by " context" if a context was current. */
  get calls(): ReadonlyArray<string> {
    return linesOf(this.control.log())
  }

  clear(): void {
    this.control.logClear()
  }

  /** How long slow calls take, in milliseconds. */
  set delay(milliseconds: number) {
    this.control.setDelay(milliseconds)
  }
}
