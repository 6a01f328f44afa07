/**
 * Compiling on a simulated runtime. Simulated devices run no machine code, so the image is empty. Kernels are functions, looked up
 * by the names in the source.
 */
import * as Effect from "effect/Effect"
import type { CompiledProgram } from "../CudaRuntime.ts"
import { architectureName } from "../shared/programs.ts"
import type { CompileTask, ProgramBackend } from "../shared/programs.ts"

export class SimulatedPrograms implements ProgramBackend {
  compile({ goal, nameExpressions }: CompileTask): Effect.Effect<CompiledProgram> {
    return Effect.sync(() => ({
      kind: "simulated",
      architecture: architectureName(goal),
      image: new Uint8Array(0),
      loweredNames: new Map(nameExpressions.map((expression) => [expression, expression])),
      log: "",
      fromCache: false
    }))
  }
}
