/**
 * Which programs depend only on their request, and so may be cached.
 */
import { assert, describe, it } from "@effect/vitest"
import type { Job } from "../../src/layers/native/nvrtcProgram.ts"
import { isSelfContained } from "../../src/layers/native/selfContained.ts"
import { within } from "../support/clock.ts"

const kernel = "__global__ void k() {}\n"

const job = (source: string, more: Partial<Job> = {}): Job => ({
  source,
  name: "k.cu",
  target: "cubin",
  options: [],
  headers: [["a.h", "int a;"]],
  nameExpressions: [],
  ...more
})

describe("a program depends on more than its request", () => {
  const sources: ReadonlyArray<readonly [string, string]> = [
    ["an include of a file", "#include \"b.h\"\n"],
    ["an include between brackets", "#include <b.h>\n"],
    ["an include without a space", "#include<b.h>"],
    ["an include after blanks", " \t\v\f#\t include \"b.h\"\n"],
    ["an include after Windows line ends", "int a;\r\n#include \"b.h\"\r\n"],
    ["an include after old line ends", "int a;\r#include \"b.h\"\r"],
    ["an include of a macro", "#include A\n"],
    ["an include of nothing", "#include\n"],
    ["an include after a comment", "#include /* a.h */ \"b.h\"\n"],
    ["a comment before the include", "/* a */ #include \"b.h\"\n"],
    ["a comment of two lines before the include", "/* a\n b */ #include \"b.h\"\n"],
    ["a comment inside the directive", "#/**/include \"b.h\"\n"],
    ["comments inside the directive", "# /* */ /* */ include \"b.h\"\n"],
    ["a comment of two lines inside the directive", "# /* \n */ include \"b.h\"\n"],
    ["a splice after the mark", "#\\\ninclude \"b.h\"\n"],
    ["a splice inside the word", "#inc\\\nlude \"b.h\"\n"],
    ["a splice with Windows line ends", "#inc\\\r\nlude \"b.h\"\r\n"],
    ["two splices", "#inc\\\n\\\nlude \"b.h\"\n"],
    ["a splice with blanks, which some compilers accept", "#inc\\ \t\nlude \"b.h\"\n"],
    ["a trigraph splice", "#inc??/\nlude \"b.h\"\n"],
    ["a trigraph splice that hides a line where there are no trigraphs", "// why??/\n#include \"b.h\"\n"],
    ["a splice with blanks that hides a line where it is none", "// why\\ \n#include \"b.h\"\n"],
    ["a trigraph mark", "??=include \"b.h\"\n"],
    ["a digraph mark", "%:include \"b.h\"\n"],
    ["a spliced digraph mark", "%\\\n:include \"b.h\"\n"],
    ["an #include_next, of any file", "#include_next \"a.h\"\n"],
    ["an #import, of any file", "#import \"a.h\"\n"],
    ["an #embed, of any file", "#embed \"a.h\"\n"],
    ["a second include", "#include \"a.h\"\n#include \"b.h\"\n"],
    ["an include of a path to a header", "#include \"./a.h\"\n"],
    ["__has_include", "#if __has_include(\"a.h\")\n#endif\n"],
    ["__has_include as a macro's value", "#define H __has_include\n"],
    ["__has_include_next", "#if __has_include_next(\"a.h\")\n#endif\n"],
    ["__has_embed", "#if __has_embed(\"a.h\")\n#endif\n"],
    ["a spliced __has_include", "#if __has_\\\ninclude(\"a.h\")\n#endif\n"],
    ["__TIME__", "__device__ const char t[] = __TIME__;\n"],
    ["__DATE__", "__device__ const char t[] = __DATE__;\n"],
    ["__TIMESTAMP__", "__device__ const char t[] = __TIMESTAMP__;\n"],
    ["a spliced __TIME__", "__device__ const char t[] = __TI\\\nME__;\n"]
  ]
  for (const [what, source] of sources) {
    it(`with ${what}`, () => {
      assert.isFalse(isSelfContained(job(source + kernel)))
      assert.isFalse(isSelfContained(job(kernel + source)))
      assert.isFalse(isSelfContained(job(kernel, { headers: [["a.h", ""], ["c.h", source]] })), "in a header")
    })
  }

  const more: ReadonlyArray<readonly [string, Partial<Job>]> = [
    ["an include path", { options: ["-I/usr/include"] }],
    ["an include path after a blank", { options: [" --include-path=/usr/include"] }],
    ["an include path behind another option", { options: ["-G -I/usr/include"] }],
    ["a macro that is the time", { options: ["-DT=__TIME__"] }],
    ["a macro that looks for files", { options: ["--define-macro=H=__has_include"] }],
    ["a name that is the time", { nameExpressions: ["k<__TIME__[0]>"] }]
  ]
  for (const [what, fields] of more) {
    it(`with ${what}`, () => assert.isFalse(isSelfContained(job(kernel, fields))))
  }
})

describe("a program depends only on its request", () => {
  const sources: ReadonlyArray<readonly [string, string]> = [
    ["includes of its headers", "#include \"a.h\"\n # include <a.h>\n%:include \"a.h\" // a\n"],
    ["an include of its header that is split", "#inc\\\nlude \\\n \"a.h\"\n"],
    ["includes in comments", "// #include \"b.h\"\n//#include <b.h>\n/* #include \"b.h\" */\n"],
    ["an include in a string", "const char* s = \"#include <b.h>\";\n"],
    ["words that are like includes", "int include = included + import; // we include, embed, and #includes\n"],
    ["other directives", "#define include_a(x) #x\n#pragma unroll\n#if 1\n#endif\n"],
    ["macros of several lines", "#define A(x) \\\n  x\n"]
  ]
  for (const [what, source] of sources) {
    it(`with ${what}`, () => assert.isTrue(isSelfContained(job(source + kernel))))
  }

  it("with ordinary options and names", () =>
    assert.isTrue(isSelfContained(job(kernel, { options: ["-DN=1", "-std=c++20"], nameExpressions: ["k<int>"] }))))
})

describe("the search takes linear time", () => {
  const parts = [
    "/**/",
    "/*",
    "*/",
    " ",
    "\n",
    "\\",
    "\\\n",
    "\\ ",
    "?",
    "??=",
    "#",
    "# ",
    "#/**/",
    "include",
    "include ",
    "*/include <",
    "#include \"a.h\"\n",
    "/**/#include <a.h>",
    "__has_"
  ]
  for (const part of parts) {
    it(`in many of ${JSON.stringify(part)}`, () =>
      within(2000, () => {
        for (const end of ["", "include", "#include \"b.h\"", "\n"]) isSelfContained(job(part.repeat(100_000) + end))
      }))
  }
})
