/**
 * The stub library (`stub/library.c`) for tests, its description, and its control.
 */
import { CudaLibrary, CudaParameter } from "effect-cuda"
import { LoadedStub } from "./stub/loaded.ts"
import type { Bound } from "./stub/loaded.ts"

const { bool, f16, f32, f64, i32, i64, i8, output, u16, u64, u8 } = CudaParameter
const { bytes, func, handleOf, hostInput, hostOutput, newHandleOf, nullable, stream, text } = CudaLibrary

const demoHandle = handleOf("demo")

/** What the functions do on simulated devices is what the stub does. */
export const demo = CudaLibrary.define({
  name: "demo",
  files: () => ["libeffectcudademo.so.1"],
  wheels: ["demo"],
  statuses: { 1: ["DEMO_BAD_VALUE", "a value is bad"], 13: ["DEMO_EXECUTION_FAILED", "the GPU failed"] },
  faults: [13],
  functions: {
    demoCreate: func([newHandleOf("demo")], { simulate: () => 0 }),
    demoCreateSlowly: func([newHandleOf("demo"), i32], { thread: "own", simulate: () => 0 }),
    demoDestroy: func([demoHandle]),
    demoDestroySlowly: func([demoHandle], { thread: "own" }),
    demoSetStream: func([demoHandle, stream]),
    demoFill: func([nullable(output), hostInput, u64, stream], {
      simulate: (to, value) => void to?.fill(value[0]!)
    }),
    demoFillOf: func([demoHandle, output, u8, u64], { simulate: (_, to, value) => void to.fill(value) }),
    demoSum: func([i8, u16, i64, u64, f32, f64, bool, nullable(text), bytes(128), nullable(hostInput), hostOutput], {
      simulate: (a, b, c, d, e, f, g, text, id, given, out) => {
        const more = given === null ? 0 : new DataView(given.buffer, given.byteOffset).getInt32(0, true)
        const sum = a + b + Number(c) + Number(d) + e + f + Number(g) + (text?.length ?? 0) + id[0]! + id[127]! + more
        new DataView(out.buffer, out.byteOffset).setFloat64(0, sum, true)
      }
    }),
    demoWait: func([i32, hostOutput], {
      thread: "own",
      simulate: (value, out) => new DataView(out.buffer, out.byteOffset).setInt32(0, value + 1, true)
    }),
    demoUse: func([demoHandle, hostOutput], { thread: "own", simulate: () => 0 }),
    demoVersion: func([], { returns: u64, context: false, simulate: () => 9007199254740993n }),
    demoText: func([i32], { returns: nullable(text), simulate: () => "demo" }),
    demoHalf: func([], { returns: f16, simulate: () => 1.5 }),
    demoLeast: func([], { returns: i64, simulate: () => -(2n ** 63n) }),
    demoNothing: func([], { returns: "void" }),
    demoNew: func([], { since: "2.0" })
  }
})

const functions = (bound: Bound) => ({
  handles: bound("stub_handles", "str", []),
  live: bound("stub_live", "int", []),
  fail: bound("stub_fail", "void", ["str", "int"])
})

/** One loaded stub library, which enqueues through a driver. */
export class StubLibrary extends LoadedStub<ReturnType<typeof functions>> {
  constructor(driver: string, macros: ReadonlyArray<string> = []) {
    super(driver, { file: "library.c", name: "libeffectcudademo", macros }, functions)
  }

  /** The calls with a handle, each as the name and the handle. */
  get handles(): ReadonlyArray<readonly [name: string, handle: number]> {
    const log: string = this.control.handles()
    return log.split("\n").filter((line) => line !== "").map((line) => {
      const [name = "", handle] = line.split(" ")
      return [name, Number(handle)] as const
    })
  }

  /** The last misuse, or the empty string. */
  get misuse(): string {
    return this.control.misuse()
  }

  /** The handles that are not destroyed. */
  get live(): number {
    return this.control.live()
  }

  /** Makes every call of a function return a status. */
  fail(name: keyof typeof demo.functions, status: number): void {
    this.control.fail(name, status)
  }
}
