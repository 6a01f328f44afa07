/**
 * The stub NVRTC (`stub/nvrtc.c`) for tests: builds it with the system's C compiler, controls it and reads its records.
 */
import { afterAll } from "@effect/vitest"
import koffi from "koffi"
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { buildLibrary } from "./stub/build.ts"

/** Compiles the stub with these macros, once per source, and returns the library's path. */
export const buildNvrtc = (macros: ReadonlyArray<string> = []): string => buildLibrary("nvrtc.c", "libnvrtc", macros)

/** The arguments of a compilation: name, source, header, content, expression and option, each any number of times. */
export type Given = Readonly<Record<string, ReadonlyArray<string>>>

/** One loaded stub. */
export class StubNvrtc {
  readonly path: string
  readonly #reset: () => void
  readonly #count: (what: number) => number
  readonly #record: () => string
  readonly #failCreate: (result: number) => void
  readonly #failName: (result: number) => void

  constructor(path: string) {
    this.path = path
    const library = koffi.load(path)
    this.#reset = library.func("stub_reset", "void", [])
    this.#count = library.func("stub_count", "int", ["int"])
    this.#record = library.func("stub_record", "str", [])
    this.#failCreate = library.func("stub_fail_create", "void", ["int"])
    this.#failName = library.func("stub_fail_name", "void", ["int"])
    this.#reset()
  }

  reset(): void {
    this.#reset()
  }

  /** Programs that were created and not destroyed. */
  get live(): number {
    return this.#count(0)
  }

  get compilations(): number {
    return this.#count(1)
  }

  /** The highest number of concurrent compilations. */
  get mostAtOnce(): number {
    return this.#count(2)
  }

  /** Compilations that the flow callback cancelled. */
  get cancelled(): number {
    return this.#count(3)
  }

  /** Calls on the JS thread. */
  get onMain(): number {
    return this.#count(4)
  }

  /** Running compilations. */
  get compiling(): number {
    return this.#count(5)
  }

  /** The number of calls to `nvrtcVersion`: one for each time the library is bound. */
  get bound(): number {
    return this.#count(6)
  }

  failCreate(result: number): void {
    this.#failCreate(result)
  }

  failName(result: number): void {
    this.#failName(result)
  }

  /** The arguments of the last compilation. */
  get given(): Given {
    const given: Record<string, Array<string>> = {}
    for (const field of this.#record().split("\x1f").slice(0, -1)) {
      const [key = "", ...value] = field.split("=")
      const values = given[key] ??= []
      values.push(value.join("="))
    }
    return given
  }
}

/** Builds and loads a stub. */
export const openNvrtc = (macros: ReadonlyArray<string> = []): StubNvrtc => new StubNvrtc(buildNvrtc(macros))

const folders: Array<string> = []

afterAll(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true })
})

/** An empty folder, removed after the tests of a file. */
export const makeFolder = (): string => {
  const folder = mkdtempSync(join(tmpdir(), "effect-cuda-nvrtc-"))
  folders.push(folder)
  return folder
}

/** Puts a stub at a path. */
export const putNvrtc = (path: string, macros: ReadonlyArray<string> = []): string => {
  mkdirSync(dirname(path), { recursive: true })
  copyFileSync(buildNvrtc(macros), path)
  return path
}
