/**
 * The stub NVML (`stub/nvml.c`) for tests: sets values of its devices by CUDA's device index, makes calls fail, and reads its log.
 */
import koffi from "koffi"
import type { NvmlFunctionName } from "../../src/cuda/nvml.ts"
import { buildLibrary } from "./stub/build.ts"

const values = ["gpu", "memory", "temperature", "power", "powerLimit", "smClock", "memoryClock"] as const
const longs = ["throttle", "corrected", "uncorrected", "energy"] as const

/** The library numbers its devices in the opposite order. */
const lastDevice = 2

const bind = (path: string) => {
  const library = koffi.load(path)
  const bound = (name: string, result: string, parameters: ReadonlyArray<string>) =>
    library.func(name, result, [...parameters])
  return {
    reset: bound("stub_reset", "void", []),
    layout: bound("stub_layout", "size_t", ["int"]),
    log: bound("stub_log", "str", []),
    logClear: bound("stub_log_clear", "void", []),
    misuse: bound("stub_misuse", "str", []),
    fail: bound("stub_fail", "void", ["str", "int", "int"]),
    live: bound("stub_live", "int", ["int"]),
    set: bound("stub_set", "void", ["int", "int", "uint32_t"]),
    setLong: bound("stub_set_long", "void", ["int", "int", "uint64_t"]),
    setProcesses: bound("stub_set_processes", "void", ["int"]),
    setDelay: bound("stub_set_delay", "void", ["int"]),
    event: bound("stub_event", "void", ["int", "uint64_t"])
  }
}

/** One loaded stub. */
export class StubNvml {
  readonly path: string
  readonly #control: ReturnType<typeof bind>

  constructor(macros: ReadonlyArray<string> = []) {
    this.path = buildLibrary("nvml.c", "libnvidia-ml", macros)
    this.#control = bind(this.path)
    this.#control.reset()
  }

  reset(): void {
    this.#control.reset()
  }

  /** The numbers of the C compiler, in the order of the stub's list. */
  layout(count: number): ReadonlyArray<number> {
    return Array.from({ length: count }, (_, index) => Number(this.#control.layout(index)))
  }

  /** The calls since the last reset, each followed by " off" if it was made off the JS thread. */
  get calls(): ReadonlyArray<string> {
    const text: string = this.#control.log()
    return text.split("\n").filter((line) => line !== "")
  }

  clear(): void {
    this.#control.logClear()
  }

  /** The last misuse, or the empty string. */
  get misuse(): string {
    return this.#control.misuse()
  }

  /** Makes the next calls of a function return a status; all of them for -1. */
  fail(name: NvmlFunctionName, status: number, times = 1): void {
    this.#control.fail(name, status, times)
  }

  get live(): { readonly initialized: number; readonly sets: number; readonly registered: number } {
    const [initialized, sets, registered] = [0, 1, 2].map((what): number => this.#control.live(what))
    return { initialized: initialized!, sets: sets!, registered: registered! }
  }

  set(deviceIndex: number, what: (typeof values)[number], value: number): void {
    this.#control.set(lastDevice - deviceIndex, values.indexOf(what), value)
  }

  setLong(deviceIndex: number, what: (typeof longs)[number], value: number): void {
    this.#control.setLong(lastDevice - deviceIndex, longs.indexOf(what), value)
  }

  set processes(count: number) {
    this.#control.setProcesses(count)
  }

  /** How long the energy call takes, in milliseconds. */
  set delay(milliseconds: number) {
    this.#control.setDelay(milliseconds)
  }

  /** Queues an Xid of a device, or of one that CUDA does not have. */
  xid(deviceIndex: number | undefined, xid: number): void {
    this.#control.event(deviceIndex === undefined ? -1 : lastDevice - deviceIndex, xid)
  }
}
